"""A detector as one file that needs neither Detectron2 nor this package: TorchScript or ONNX.

Detectron2's ``TracingAdapter`` records what happens to one picture; the record takes pictures of any size.
What was written is run again on pictures of several sizes, and must give what the model gives.

Input: ``image`` (3, H, W) float32, 0..255 in the order of INPUT.FORMAT, resized as for a test. Outputs, of N
objects, in pixels of that image: ``pred_boxes`` (N, 4), ``pred_classes`` (N,), ``scores`` (N,),
``pred_masks`` (N, 1, 28, 28) probabilities within the box, ``pred_keypoints`` (N, K, 3), and ``image_size``
(2,). TorchScript needs torchvision's operators to be loaded.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from torch import nn

from nlnet_d2.engine.errors import ConfigError

logger = logging.getLogger(__name__)

OPSET = 17
TOLERANCE = 1e-3  # of the largest number of an output
Run = Callable[[torch.Tensor], Sequence[torch.Tensor]]


def export(model: nn.Module, path: str | Path, images: Sequence[torch.Tensor]) -> dict[str, float]:
    """Write a detector to a file, and compare the two.

    Args:
        model: on the CPU, with its weights.
        path: ``*.ts`` (TorchScript) or ``*.onnx``.
        images: (3, H, W) float32, at least two sizes; the first one is traced.

    Returns:
        largest difference of each output, relative to its largest number.

    Raises:
        ConfigError: the model or format cannot be exported, or the file gives other results; it is removed.
    """
    write, read = _format(path)
    _require_exportable(model, path)
    adapter = TracingAdapter(model.eval(), [{"image": images[0]}], _detect).eval()
    names = sorted(_detect(model, [{"image": images[0]}]).get_fields()) + ["image_size"]
    try:
        with torch.no_grad(), _quiet():
            write(adapter, images[0], names, str(path))
            differences = _compare(adapter, read(str(path)), images, names)
    except Exception as error:  # exporters raise whatever they like
        Path(path).unlink(missing_ok=True)
        raise ConfigError(f"{path}: this model cannot be exported so: {error}") from error
    return differences


def _detect(model: nn.Module, inputs: list[dict]):
    return model.inference(inputs, do_postprocess=False)[0]


def _format(path: str | Path) -> tuple[Callable, Callable[[str], Run]]:
    formats = {".ts": (_write_torchscript, _read_torchscript), ".onnx": (_write_onnx, _read_onnx)}
    if Path(path).suffix not in formats:
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(formats)}")
    return formats[Path(path).suffix]


def _require_exportable(model: nn.Module, path: str | Path) -> None:
    if not isinstance(model, GeneralizedRCNN):
        raise ConfigError(f"{type(model).__name__} cannot be exported: only GeneralizedRCNN can")
    if Path(path).suffix == ".onnx":
        for name in ("mask_head", "keypoint_head"):
            head = getattr(model.roi_heads, name, nn.Identity())
            if any(isinstance(module, nn.GroupNorm) for module in head.modules()):
                raise ConfigError(
                    f"the {name} has GN, which onnxruntime does not run on a picture without objects; "
                    "export TorchScript (.ts), or train with another norm"
                )


def _write_torchscript(adapter: nn.Module, image: torch.Tensor, names: Sequence[str], path: str) -> None:
    torch.jit.trace(adapter, (image,), check_trace=False).save(path)


def _read_torchscript(path: str) -> Run:
    return torch.jit.load(path)


def _write_onnx(adapter: nn.Module, image: torch.Tensor, names: Sequence[str], path: str) -> None:
    try:
        import onnx  # noqa: F401  (the exporter needs it)
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error}; get it with: pip install onnx onnxruntime") from error
    sizes = {"image": {1: "height", 2: "width"}} | {name: {0: "objects"} for name in names[:-1]}
    # The exporter through torch.export cannot follow a number of objects that depends on the picture.
    torch.onnx.export(
        adapter,
        (image,),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=names,
        dynamic_axes=sizes,
    )


def _read_onnx(path: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(out) for out in session.run(None, {"image": image.numpy()})]


def _compare(
    original: Run, exported: Run, images: Sequence[torch.Tensor], names: Sequence[str]
) -> dict[str, float]:
    largest = dict.fromkeys(names, 0.0)
    for image in images:
        size = " x ".join(map(str, image.shape[1:]))
        expected, got = (dict(zip(names, run(image), strict=True)) for run in (original, exported))
        if len(expected["scores"]) != len(got["scores"]):
            raise ConfigError(
                f"at {size} it finds {len(got['scores'])} objects, not {len(expected['scores'])}"
            )
        if not len(expected["scores"]):
            logger.warning("Nothing is found in a picture of %s: it compares little", size)
            continue
        order = _matches(expected, got)
        for name in names:
            found = got[name] if name == "image_size" else got[name][order]
            scale = expected[name].abs().max().item() or 1.0
            largest[name] = max(largest[name], (expected[name] - found).abs().max().item() / scale)
            if not largest[name] <= TOLERANCE:
                raise ConfigError(f"{name} at {size} differs by {largest[name]:.2g} of its largest number")
    return largest


def _matches(expected: dict, got: dict) -> torch.Tensor:
    """(N,) the object of ``got`` that is nearest to each of ``expected``: equal scores come in any order."""
    apart = 1e6  # objects of two classes are never near

    def rows(objects: dict) -> torch.Tensor:
        columns = objects["pred_classes"].unsqueeze(1) * apart, objects["scores"].unsqueeze(1)
        return torch.cat((objects["pred_boxes"], *columns), dim=1).double()

    return torch.cdist(rows(expected), rows(got)).argmin(dim=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every Python number; the comparison says whether one mattered."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", module="torch.onnx")
        yield
