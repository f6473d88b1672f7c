"""Relative and absolute positions, and what happens at sizes they were not learnt at."""

import pytest
import torch
from torch.nn.functional import interpolate

from nlnet_d2.layers.position_embedding import resize_positions
from nlnet_d2.layers.relative_position import relative_positions


def upstream_index(q_size: int, k_size: int) -> torch.Tensor:
    """Detectron2's rule for the table entry of query i and key j, written out entry by entry in float32."""
    q_stretch, k_stretch = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    shift = torch.tensor((k_size - 1) * k_stretch, dtype=torch.float32)
    entries = [
        [int(torch.tensor(i) * q_stretch - torch.tensor(j) * k_stretch + shift) for j in range(k_size)]
        for i in range(q_size)
    ]
    return torch.tensor(entries)


@pytest.mark.parametrize(
    "q_size, k_size", [(4, 4), (8, 4), (14, 7), (4, 8), (13, 6), (16, 6), (5, 3), (1, 1)]
)
def test_offsets_at_unequal_sizes(q_size, k_size):
    """13, 6 and 16, 6 are sizes at which the rounding of float32 shows."""
    table = torch.arange(2.0 * max(q_size, k_size) - 1)[:, None]
    got = relative_positions(table, q_size, k_size)[..., 0].long()
    assert torch.equal(got, upstream_index(q_size, k_size))


def test_equal_sizes_give_the_offset():
    got = relative_positions(torch.arange(9.0)[:, None], 5, 5)[..., 0]
    assert got[4, 0] == 8 and got[0, 4] == 0 and (got.diagonal() == 4).all()


def test_table_of_another_length_is_interpolated():
    table = torch.randn(7, 3)
    longer = interpolate(table.t()[None], size=11, mode="linear", align_corners=False)[0].t()
    assert torch.equal(relative_positions(table, 6, 4), relative_positions(longer, 6, 4))


def test_absolute_positions_of_their_own_size_are_only_reshaped():
    positions = torch.randn(1, 17, 6)
    assert torch.equal(resize_positions(positions, (4, 4), class_token=True)[0, 1, 2], positions[0, 1 + 6])
    assert torch.equal(
        resize_positions(positions[:, 1:], (4, 4), class_token=False)[0, 1, 2], positions[0, 1 + 6]
    )


def test_absolute_positions_are_interpolated():
    """A ramp stays one, within what torch's bicubic kernel makes of it, away from the border."""
    ramp = torch.arange(8.0).repeat(8, 1).reshape(1, 64, 1)
    resized = resize_positions(ramp, (4, 16), class_token=False)
    assert resized.shape == (1, 4, 16, 1)
    expected = (torch.arange(5, 11) + 0.5) / 2 - 0.5
    torch.testing.assert_close(resized[0, 2, 5:11, 0], expected, rtol=0, atol=0.05)


def test_positions_that_are_no_square():
    with pytest.raises(ValueError, match="17 position embeddings without a class token are not a square"):
        resize_positions(torch.zeros(1, 17, 4), (5, 5), class_token=False)
