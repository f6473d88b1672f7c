"""Two gloo processes do what one does; what happens in one of them is known to both."""

import atexit
import json
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from test_step import Line

from nlnet_d2.engine.errors import ConfigError, Diverged
from nlnet_d2.engine.launch import distribute, launch
from nlnet_d2.engine.step import TrainStep

SAMPLES = [{"x": x, "file_name": f"{x}.jpg"} for x in (0.5, 1.5, -1.0, 2.0)]


def processes(count, folder):
    return Namespace(num_gpus=count, num_machines=1, machine_rank=0, dist_url=f"file://{folder}/rendezvous")


def train_three_steps(folder, accumulate):
    """Each process takes its share of SAMPLES; every rank leaves a report."""
    torch.manual_seed(comm.get_rank())  # DDP must bring the initial weights into line
    if comm.get_world_size() == 1:
        torch.manual_seed(0)
    model = distribute(Line())
    share = SAMPLES[comm.get_rank() :: comm.get_world_size()]
    broken = [{**d, "x": float("nan")} for d in share] if comm.get_rank() == 1 else share
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, [share] * 3 + [broken], optimizer, accumulate=accumulate)
    report = {"stops": []}
    with EventStorage():
        for step.iter in range(3):
            step.stop_requested = step.iter == 2 and comm.get_rank() == 1
            step.run_step()
            report["stops"].append(step.stop)
        report["weight"] = [p.item() for p in model.parameters()]
        report["gradient"] = [p.grad.item() for p in model.parameters()]
        if comm.get_world_size() > 1:
            with pytest.raises(Diverged) as stopped:
                step.run_step()
            report["error"] = str(stopped.value)
            report["suspects"] = [d["file_name"] for d in stopped.value.batch]
    report["local_rank"] = comm.get_local_rank()
    Path(folder, f"rank{comm.get_rank()}.json").write_text(json.dumps(report))
    if comm.get_world_size() > 1:
        raise SystemExit(7)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one(tmp_path, accumulate):
    """Also where each takes its batch in parts."""
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    launch(train_three_steps, processes(1, folders[0]), "cpu", str(folders[0]), 1)
    with pytest.raises(SystemExit) as left:
        launch(train_three_steps, processes(2, folders[1]), "cpu", str(folders[1]), accumulate)
    assert left.value.code == 7, "the exit code of the children is that of the run"
    alone = json.loads((tmp_path / "1" / "rank0.json").read_text())
    first, second = (json.loads((tmp_path / "2" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["gradient"] == second["gradient"] == pytest.approx(alone["gradient"], abs=1e-6)
    assert first["weight"] == second["weight"] == pytest.approx(alone["weight"], abs=1e-6)
    assert first["stops"] == second["stops"] == [False, False, True]
    assert (first["local_rank"], second["local_rank"]) == (0, 1)
    for report in (first, second):  # the images of the process whose loss was broken, in both
        assert "1.5.jpg" in report["error"] and "0.5.jpg" not in report["error"]
    assert first["suspects"] == [] and second["suspects"] == ["1.5.jpg", "2.0.jpg"]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_processes_run_here(tmp_path, count):
    """As Detectron2 does with ``--num-gpus 0``; to start none would end with success and do nothing."""
    assert launch(lambda word: word, processes(count, tmp_path), "cpu", "done") == "done"


def test_machines_that_do_not_know_where_to_meet():
    """Each would listen on a port of its own, and wait for the others for ever."""
    args = Namespace(num_gpus=1, num_machines=2, machine_rank=0, dist_url="auto")
    with pytest.raises(ConfigError, match="--dist-url auto is for one machine"):
        launch(print, args, "cpu")


TASKS = Path("/proc/self/task")


def threads():
    return {path.name for path in TASKS.glob("*")}


WITHOUT_GROUP = threads()  # a child imports this file before it joins the group


def note_threads(path, of_the_group):
    path.write_text(str(len(threads() & of_the_group)))


def train_and_leave(folder, code):
    """Each rank notes, as its interpreter ends, how many threads of the group it still has."""
    comm.all_gather("through the group that Detectron2 keeps")
    of_the_group = threads() - WITHOUT_GROUP
    assert of_the_group
    atexit.register(note_threads, Path(folder, f"threads{comm.get_rank()}"), of_the_group)
    model = distribute(Line())
    sum(model(SAMPLES).values()).backward()
    if code:
        raise SystemExit(code)


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted where Linux lists them")
@pytest.mark.parametrize("code", [0, 7])
def test_no_thread_of_the_group_outlives_it(tmp_path, code):
    """One aborted the interpreter now and then, whose exit code was then -6."""
    with pytest.raises(SystemExit, match="7") if code else nullcontext():
        launch(train_and_leave, processes(2, tmp_path), "cpu", str(tmp_path), code)
    notes = list(tmp_path.glob("threads*"))  # one, where the first to leave ended the other
    assert notes and {note.read_text() for note in notes} == {"0"}


def test_more_processes_than_gpus(tmp_path):
    with pytest.raises(ConfigError, match="--num-gpus 999, but this machine has"):
        launch(print, processes(999, tmp_path), "cuda")
