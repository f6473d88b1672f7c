"""The stream of training batches, as a function of seed and iteration.

Detectron2's loader groups images by shape after decoding them and starts anew at every resume. Here the plan
of the batches (indices only) comes first, so that skipping to iteration k costs no decoding, and each sample
is mapped under its own seed, so that the number of workers changes nothing.
"""

import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from nlnet_d2.blocks.base import nearest
from nlnet_d2.data.augmentation import build_mapper
from nlnet_d2.data.clip_mapper import ClipMapper, clip_records
from nlnet_d2.data.datasets.ava import is_ava
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.errors import STOP_SIGNALS, ConfigError
from nlnet_d2.engine.seeding import seeded
from nlnet_d2.layers.norm import SUB_BATCH

STEP, SAMPLE = 0, 1  # the streams of random numbers: one per iteration, one per sample
GRACE = 20  # seconds that a loader worker lives on after SIGTERM


def plan_batches(
    indices: Iterable[int], is_wide: Sequence[bool], batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Batches of (position, index); images that are wider than high share batches, as in Detectron2."""
    buckets = [], []
    for position, index in enumerate(indices):
        bucket = buckets[is_wide[index]]
        bucket.append((position, index))
        if len(bucket) == batch_size:
            yield bucket.copy()
            bucket.clear()


class ReadError(DataError):
    """A training sample that cannot be read, or at which the process that loads data died."""


def sample_name(record: dict) -> str:
    """What a dataset dict is about: its file, or the second of its video."""
    if "video_id" in record:
        return f"video {record['video_id']}, second {record.get('second')}"
    return str(record.get("file_name", record.get("image_id")))


class SeededSamples(Dataset):
    """Maps (position, index) to the sample ``index``, drawn with the random numbers of ``position``.

    Raises:
        ReadError: names the record.
    """

    def __init__(self, records: Dataset, mapper: Callable[[dict], dict], *counters: int):
        self.records, self.counters = records, counters
        self.dataset = MapDataset(records, mapper)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        position, index = item
        try:
            with seeded(*self.counters, position):
                return self.dataset[index]
        except (OSError, ValueError) as error:
            name = sample_name(self.records[index])
            raise ReadError(f"training sample {index}, {name}, cannot be read: {error}") from error


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach loader workers too: let the running iteration end first."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


class TrainLoader:
    """Endless batches (lists of mapped dicts) for this process.

    Args:
        dicts: Detectron2 dataset dicts; ``width`` and ``height`` are needed with ``group_by_aspect``.
        mapper: maps a dict to what the model takes.
        make_sampler: seed -> endless sampler of indices for this process, for example ``TrainingSampler``.
        batch_size: images of this process per iteration.
        num_workers: processes that decode; 0 decodes in this one. Does not change the batches.

    Attributes:
        seed, start_iter: set them before the first batch is taken.
    """

    def __init__(
        self,
        dicts: list[dict],
        mapper: Callable[[dict], dict],
        make_sampler: Callable[[int], Sampler],
        *,
        batch_size: int,
        num_workers: int = 0,
        group_by_aspect: bool = True,
    ):
        self.records, self.mapper = DatasetFromList(dicts, copy=False), mapper
        self.is_wide = [group_by_aspect and d["width"] > d["height"] for d in dicts]
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = self.start_iter = 0

    def __iter__(self) -> Iterator[list[dict]]:
        # A generator: nothing is read before the first batch is taken, so that seed and start can come
        # from a checkpoint (detectron2 0.6 calls iter() in the constructor of its trainer).
        plan = plan_batches(self.make_sampler(self.seed), self.is_wide, self.batch_size)
        handed_out: deque[list[tuple[int, int]]] = deque()
        loader = DataLoader(
            SeededSamples(self.records, self.mapper, self.seed, SAMPLE, comm.get_rank()),
            batch_sampler=_noted(islice(plan, self.start_iter, None), handed_out),
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # its own: drawing from the global one would shift the training
        )
        try:
            for batch in _without_sigchld(loader):
                handed_out.popleft()
                yield batch
        except ReadError as error:
            traceback.clear_frames(error.__traceback__)  # they hold the processes that load data
            raise
        except (RuntimeError, OSError, EOFError) as error:
            if not _means_death(error):
                raise
            traceback.clear_frames(error.__traceback__)
            waiting = sorted({index for batch in handed_out for _, index in batch})
            names = "\n  ".join(f"{index}, {sample_name(self.records[index])}" for index in waiting)
            raise ReadError(
                "a process that loads data was killed, as systems do where memory is short (then lower "
                f"DATALOADER.NUM_WORKERS). It was to read one of these samples:\n  {names}"
            ) from error


def _means_death(error: Exception) -> bool:
    """Whether a loader process died: torch says so, or what it had read cannot be fetched from it."""
    if isinstance(error, (ConnectionError, FileNotFoundError, EOFError)):
        return "in DataLoader worker process" not in str(error)  # as torch words what a living one raised
    return "exited unexpectedly" in str(error)


def _noted(batches: Iterable, notes: deque) -> Iterator:
    for batch in batches:
        notes.append(batch)
        yield batch


def _without_sigchld(loader: DataLoader) -> Iterator[list[dict]]:
    """``iter(loader)``, which learns that a worker died when it waits for it, and not amid an iteration."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return batches


def _sampler_maker(cfg, dicts: list[dict], are_clips: bool) -> Callable[[int], Sampler]:
    loader = cfg.DATALOADER
    samplers = {
        "TrainingSampler": lambda seed: TrainingSampler(len(dicts), seed=seed),
        "RandomSubsetTrainingSampler": lambda seed: RandomSubsetTrainingSampler(
            len(dicts), loader.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed
        ),
    }
    if not are_clips:  # they have no categories to repeat by
        samplers["RepeatFactorTrainingSampler"] = lambda seed: RepeatFactorTrainingSampler(
            RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                dicts, loader.REPEAT_THRESHOLD
            ),
            seed=seed,
        )
    if loader.SAMPLER_TRAIN not in samplers:
        hint = nearest(loader.SAMPLER_TRAIN, list(samplers))
        raise ConfigError(f"DATALOADER.SAMPLER_TRAIN: unknown {loader.SAMPLER_TRAIN!r}; {hint}")
    return samplers[loader.SAMPLER_TRAIN]


def build_train_loader(cfg, mapper: Callable[[dict], dict] | None = None) -> TrainLoader:
    """The loader of DATASETS.TRAIN, images or clips; ``mapper`` defaults to that of INPUT.

    Raises:
        ConfigError: the batch cannot be divided among the processes, or by SubBN, or an unknown sampler.
    """
    world_size, total, parts = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if total < 1 or parts < 1 or total % (world_size * parts):
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH = {total} must be a positive multiple of {world_size} (processes) x "
            f"{parts} (SOLVER.ACCUMULATE)"
        )
    if cfg.MODEL.RESNETS.NORM == "SubBN" and total // (world_size * parts) % SUB_BATCH:
        raise ConfigError(
            f"MODEL.RESNETS.NORM SubBN takes {SUB_BATCH} clips at once: SOLVER.IMS_PER_BATCH = {total} is no "
            f"multiple of {SUB_BATCH} x {world_size} (processes) x {parts} (SOLVER.ACCUMULATE)"
        )
    are_clips, dicts = is_ava(cfg.DATASETS.TRAIN[0]), training_records(cfg)
    own_mapper = ClipMapper if are_clips else build_mapper
    return TrainLoader(
        dicts,
        mapper or own_mapper(cfg, is_train=True),
        _sampler_maker(cfg, dicts, are_clips),
        batch_size=total // world_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )


def training_records(cfg) -> list[dict]:
    """The dataset dicts of DATASETS.TRAIN that a training goes through, each once an epoch."""
    if is_ava(cfg.DATASETS.TRAIN[0]):
        return clip_records(cfg, cfg.DATASETS.TRAIN, is_train=True)
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def build_test_loader(cfg, dataset_name: str) -> DataLoader:
    """Detectron2's loader of one data set of DATASETS.TEST, images or clips; each once, one by one."""
    if not is_ava(dataset_name):
        return build_detection_test_loader(cfg, dataset_name)
    return build_detection_test_loader(
        clip_records(cfg, [dataset_name], is_train=False),
        mapper=ClipMapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
