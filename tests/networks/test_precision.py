"""Precision and memory format: decided in one place, by what the processor or card computes in."""

import pytest
import torch
from conftest import tiny_config

from sampdetox_transforms.networks import precision
from sampdetox_transforms.networks.precision import fastest_dtype, has_fast_bf16, set_precision
from sampdetox_transforms.networks.unet import UNet


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_taken_where_it_is_fast(monkeypatch, fast, dtype):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: fast)
    assert fastest_dtype(torch.device("cpu")) is dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_parameters_are_converted_in_place_and_convolutions_lie_channels_last(dtype):
    network = UNet(tiny_config())
    weight = network.conv_in.weight
    set_precision(network, dtype)
    assert network.conv_in.weight is weight
    assert {p.dtype for p in network.parameters()} == {dtype or torch.float32}
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_a_device_without_bfloat16_of_its_own_is_not_fast():
    assert not has_fast_bf16(torch.device("meta"))
