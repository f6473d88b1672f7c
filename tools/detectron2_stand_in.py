"""Stand-in for the compiled module ``detectron2._C`` (installed as ``detectron2/_C.py``).

Deformable convolution is served by ``torchvision.ops.deform_conv2d``, on CPU too; rotated boxes need the
compiled operators and say so. The compiled module's COCO evaluation is ``nlnet_d2.evaluation.coco`` here.
"""

from torchvision.ops import deform_conv2d


def deform_conv(
    input,
    offset,
    weight,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    deformable_groups=1,
    im2col_step=64,
):
    """Deformable convolution v1 (arXiv 1703.06211) with the arguments of detectron2's ``_DeformConv``.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * deformable_groups * kH * kW, H', W'), (dy, dx) of each kernel position, in pixels.
        weight: (C', C / groups, kH, kW).
        groups, deformable_groups: must agree with the shapes, from which torchvision reads them.
        im2col_step: chunk of the batch in the compiled kernel; the result does not depend on it.

    Returns:
        (N, C', H', W')

    Raises:
        ValueError: groups that contradict the shapes.
    """
    _check_groups(input, offset, weight, groups, deformable_groups)
    return deform_conv2d(input, offset, weight, stride=stride, padding=padding, dilation=dilation)


def modulated_deform_conv(
    input,
    offset,
    mask,
    weight,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    deformable_groups=1,
):
    """Deformable convolution v2 (arXiv 1811.11168): as v1, each sample weighted by ``mask``.

    Args:
        mask: (N, deformable_groups * kH * kW, H', W').
        bias: (C',) or None.
    """
    _check_groups(input, offset, weight, groups, deformable_groups)
    return deform_conv2d(
        input, offset, weight, bias, stride=stride, padding=padding, dilation=dilation, mask=mask
    )


def _check_groups(input, offset, weight, groups, deformable_groups):
    _, per_group, height, width = weight.shape
    if input.shape[1] != groups * per_group:
        raise ValueError(f"weight {tuple(weight.shape)} in {groups} groups, on {input.shape[1]} channels")
    expected = 2 * deformable_groups * height * width
    if offset.shape[1] != expected:
        raise ValueError(
            f"{offset.shape[1]} offsets per position, expected {expected}: dy and dx for {deformable_groups} "
            f"deformable groups and {height} x {width} kernel positions"
        )


def _needs_compilation(*args, **kwargs):
    raise NotImplementedError(
        "Rotated boxes need detectron2's compiled operators, which this pure-Python installation lacks. "
        "Build detectron2 from source (its INSTALL.md: a C++ compiler that suits your PyTorch) and use that."
    )


roi_align_rotated_forward = roi_align_rotated_backward = _needs_compilation
box_iou_rotated = nms_rotated = _needs_compilation


def get_compiler_version() -> str:
    return "none (pure-Python stand-in)"


def get_cuda_version() -> str:
    return "none (pure-Python stand-in)"


def has_cuda() -> bool:
    return False
