"""``GroupNorm`` is PyTorch's, whatever way it takes."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from sampdetox_transforms.networks.group_norm import GroupNorm


def both(groups: int, channels: int, dtype: torch.dtype) -> tuple[GroupNorm, nn.GroupNorm]:
    """The package's and PyTorch's, with the same random parameters."""
    ours, theirs = GroupNorm(groups, channels, 1e-3), nn.GroupNorm(groups, channels, 1e-3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 12, 16]),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.booleans(),
)
def test_it_is_that_of_float64(groups, width, images, side, dtype, last):
    ours, theirs = both(groups, groups * width, dtype)
    x = (torch.randn(images, groups * width, side, side + 1) * 2 + 1).to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    found, wanted = ours(x), theirs.double()(x.double())
    assert found.dtype == dtype and found.shape == x.shape and found.stride() == x.stride()
    torch.testing.assert_close(found.double(), wanted, atol=0.05 if dtype == torch.bfloat16 else 0.01, rtol=0.02)


@pytest.mark.parametrize(
    ("channels", "side", "dtype", "by_float32"),
    [
        (64, 16, torch.bfloat16, True),
        (64, 16, torch.float16, True),
        (64, 16, torch.float32, False),  # nothing to convert
        (128, 16, torch.bfloat16, False),  # groups that fill a register
        (64, 32, torch.bfloat16, False),  # images of many pixels
    ],
)
def test_float32_is_used_where_it_is_faster(channels, side, dtype, by_float32):
    ours, _ = both(8, channels, dtype)
    x = torch.randn(2, channels, side, side, dtype=dtype)
    with mock.patch.object(functional, "group_norm", wraps=functional.group_norm) as norm:
        ours(x)
    assert [call.args[0].dtype for call in norm.call_args_list] == [torch.float32 if by_float32 else dtype]


def test_gradients_reach_the_input_and_the_parameters():
    ours, _ = both(8, 64, torch.bfloat16)
    x = torch.randn(2, 64, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    ours(x).square().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.parameters())
