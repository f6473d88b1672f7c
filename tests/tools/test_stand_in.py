"""The stand-in for detectron2's compiled module: deformable convolution against its definition."""

import importlib.metadata
import itertools
from pathlib import Path

import detectron2
import detectron2_stand_in as stand_in
import pytest
import torch
from detectron2.layers import DeformConv, ModulatedDeformConv, ROIAlignRotated, nms_rotated
from detectron2.layers.rotated_boxes import pairwise_iou_rotated

installed_by_us = pytest.mark.skipif(
    "+nlnet" not in importlib.metadata.version("detectron2"), reason="this detectron2 has its compiled module"
)

# channels in, channels out, kernel, stride, padding, dilation, groups, deformable groups, size
LAYERS = {
    "plain": (2, 2, (3, 3), 1, 1, 1, 1, 1, (4, 5)),
    "groups": (4, 2, (3, 3), 1, 1, 1, 2, 1, (4, 4)),
    "deformable groups": (2, 2, (3, 3), 1, 1, 1, 1, 2, (4, 5)),
    "both groups": (4, 4, (3, 3), 1, 1, 1, 4, 2, (3, 5)),
    "stride": (2, 2, (3, 3), 2, 1, 1, 1, 1, (7, 5)),
    "dilation": (2, 1, (3, 3), 1, 2, 2, 1, 1, (5, 7)),
    "all, odd": (4, 2, (3, 3), 2, 2, 3, 2, 2, (9, 7)),
    "no padding": (2, 2, (3, 3), 1, 0, 1, 1, 1, (5, 4)),
    "1 x 1": (2, 3, (1, 1), 1, 0, 1, 1, 1, (3, 4)),
    "3 x 1": (2, 2, (3, 1), 1, 1, 1, 1, 1, (4, 5)),
}


def bilinear(image, y, x):
    """``image`` (H, W) between its pixels; it is 0 outside."""
    height, width = image.shape
    top, left = int(torch.floor(y)), int(torch.floor(x))
    value = image.new_zeros(())
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            value = value + (1 - (y - row).abs()) * (1 - (x - column).abs()) * image[row, column]
    return value


def literal(x, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups):
    """Dai et al. (arXiv 1703.06211) eq. 2, with the mask of Zhu et al. (arXiv 1811.11168) eq. 1."""
    count, channels, _, _ = x.shape
    out_channels, per_group, kernel_h, kernel_w = weight.shape
    out_h, out_w = offset.shape[2:]
    output = x.new_zeros(count, out_channels, out_h, out_w)
    places = itertools.product(range(count), range(out_channels), range(out_h), range(out_w))
    for n, o, i, j in places:
        total = bias[o]
        for c, ki, kj in itertools.product(range(per_group), range(kernel_h), range(kernel_w)):
            channel = o // (out_channels // groups) * per_group + c
            k = channel // (channels // deformable_groups) * kernel_h * kernel_w + ki * kernel_w + kj
            y = i * stride - padding + ki * dilation + offset[n, 2 * k, i, j]
            z = j * stride - padding + kj * dilation + offset[n, 2 * k + 1, i, j]
            total = total + weight[o, c, ki, kj] * mask[n, k, i, j] * bilinear(x[n, channel], y, z)
        output[n, o, i, j] = total
    return output


def tensors(layer, count=1):
    """Random float64 (x, offset, mask, weight, bias) of a layer, and its arguments; offsets reach outside."""
    channels, out_channels, kernel, stride, padding, dilation, groups, deformable_groups, size = LAYERS[layer]
    random = torch.Generator().manual_seed(len(layer))
    reach = [dilation * (k - 1) for k in kernel]
    sizes = [(n + 2 * padding - r - 1) // stride + 1 for n, r in zip(size, reach, strict=True)]
    samples = deformable_groups * kernel[0] * kernel[1]
    shapes = [
        (count, channels, *size),
        (count, 2 * samples, *sizes),
        (count, samples, *sizes),
        (out_channels, channels // groups, *kernel),
        (out_channels,),
    ]
    x, offset, mask, weight, bias = (
        torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes
    )
    return (x, offset, mask, weight, bias), (stride, padding, dilation, groups, deformable_groups)


@pytest.mark.parametrize("layer", LAYERS)
def test_deform_conv_is_its_definition(layer):
    (x, offset, mask, weight, bias), arguments = tensors(layer, count=2)
    expected = literal(x, offset, torch.ones_like(mask), weight, torch.zeros_like(bias), *arguments)
    torch.testing.assert_close(stand_in.deform_conv(x, offset, weight, *arguments), expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_modulated_deform_conv_and_its_gradients_are_those_of_the_definition(layer):
    inputs, arguments = tensors(layer)
    output = stand_in.modulated_deform_conv(*inputs, *arguments)
    expected = literal(*inputs, *arguments)
    torch.testing.assert_close(output, expected)
    direction = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).reshape(output.shape)
    gradients = torch.autograd.grad(output, inputs, direction)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("layer", ["both groups", "all, odd"])
def test_gradients_are_differences(layer):
    (x, offset, mask, weight, bias), arguments = tensors(layer)
    assert torch.autograd.gradcheck(
        lambda *t: stand_in.deform_conv(*t, *arguments), (x, offset, weight), fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda *t: stand_in.modulated_deform_conv(*t, *arguments),
        (x, offset, mask, weight, bias),
        fast_mode=True,
    )


def test_without_bias_and_with_any_im2col_step():
    (x, offset, mask, weight, bias), arguments = tensors("groups")
    without = stand_in.modulated_deform_conv(x, offset, mask, weight, None, *arguments)
    expected = stand_in.modulated_deform_conv(x, offset, mask, weight, torch.zeros_like(bias), *arguments)
    torch.testing.assert_close(without, expected)
    results = [stand_in.deform_conv(x, offset, weight, *arguments, im2col_step=step) for step in (1, 64)]
    assert torch.equal(*results)


@pytest.mark.parametrize("groups, deformable_groups, message", [(1, 1, "weight"), (2, 2, "offsets")])
def test_groups_that_contradict_the_shapes_are_an_error(groups, deformable_groups, message):
    (x, offset, _, weight, _), _ = tensors("groups")
    arguments = {"padding": 1, "groups": groups, "deformable_groups": deformable_groups}
    with pytest.raises(ValueError, match=message):
        stand_in.deform_conv(x, offset, weight, **arguments)


@installed_by_us
@pytest.mark.parametrize("layer", [name for name, values in LAYERS.items() if values[2] == (3, 3)])
def test_layers_of_detectron2_run_on_cpu(layer):
    channels, out_channels, kernel, *_ = LAYERS[layer]
    (x, offset, mask, weight, bias), arguments = tensors(layer)
    plain = DeformConv(channels, out_channels, kernel, *arguments).double()
    modulated = ModulatedDeformConv(channels, out_channels, kernel[0], *arguments, bias=True).double()
    plain.weight.data, modulated.weight.data, modulated.bias.data = weight.data, weight.data, bias.data
    ones, zeros = torch.ones_like(mask), torch.zeros_like(bias)
    torch.testing.assert_close(plain(x, offset), literal(x, offset, ones, weight, zeros, *arguments))
    output = modulated(x, offset, mask)
    torch.testing.assert_close(output, literal(x, offset, mask, weight, bias, *arguments))
    output.sum().backward()
    assert modulated.weight.grad.abs().sum() > 0


@installed_by_us
def test_layer_of_detectron2_on_an_empty_batch():
    layer = DeformConv(2, 4, 3, stride=2, padding=1)
    assert layer(torch.zeros(0, 2, 9, 7), torch.zeros(0, 18, 5, 4)).shape == (0, 4, 5, 4)


@installed_by_us
def test_rotated_boxes_say_how_to_get_them():
    boxes = torch.tensor([[5.0, 5.0, 4.0, 2.0, 30.0]])
    calls = [
        lambda: pairwise_iou_rotated(boxes, boxes),
        lambda: nms_rotated(boxes, torch.ones(1), 0.5),
        lambda: ROIAlignRotated((2, 2), 1.0, 0)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 6)),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match=r"Rotated boxes need .* from source"):
            call()


@installed_by_us
def test_installed_stand_in_is_this_one():
    installed = Path(detectron2.__file__).with_name("_C.py")
    assert installed.read_text() == Path(stand_in.__file__).read_text()
