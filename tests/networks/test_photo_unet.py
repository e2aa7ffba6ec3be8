"""The networks for photographs: cost a pixel, sizes, conditions, and the names that their weights are stored under."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.networks.photographs import restoring_network, search_network

SMALL = {"widths": (8, 16), "down": (1, 2), "up": (1,), "unshuffle": 2}


def flops_a_pixel(network: PhotoUNet, size: int = 256) -> float:
    conditions = torch.zeros(1, network.conditions) if network.conditions else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, network.planes_in, size, size), conditions)
    return counter.get_total_flops() / size**2


def test_a_pixel_costs_less_than_60_000_operations():
    assert 57_000 < flops_a_pixel(PhotoUNet(3, 1, image_logit=True)) < 58_000
    assert 61_500 < flops_a_pixel(PhotoUNet(5, 3, conditions=2)) < 62_500
    assert sum(p.numel() for p in PhotoUNet(3, 1, image_logit=True).parameters()) == 2_462_929


def test_what_a_pixel_costs_in_the_networks_of_photographs():
    assert 81_000 < flops_a_pixel(search_network()) < 82_000
    assert 127_000 < flops_a_pixel(restoring_network()) < 129_000


def test_cost_does_not_depend_on_the_size_of_the_image():
    network = PhotoUNet(3, 1)
    assert flops_a_pixel(network, 64) == pytest.approx(flops_a_pixel(network, 512), rel=0.01)


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (32, 32), (33, 64), (100, 31)])
@pytest.mark.parametrize("image_logit", [False, True])
def test_any_size(size, image_logit):
    network = PhotoUNet(4, 3, image_logit=image_logit, **SMALL).eval()
    answer = network(torch.rand(2, 4, *size))
    planes, logit = answer if image_logit else (answer, torch.zeros(2))
    assert planes.shape == (2, 3, *size) and logit.shape == (2,)


def test_the_border_is_mirrored_and_cropped_off_again():
    network = PhotoUNet(3, 1, **SMALL).eval()
    assert network.size_multiple == 4
    x = torch.rand(1, 3, 6, 8)  # one row is missing above, one below
    mirrored = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=-2)
    assert torch.equal(network(x), network(mirrored)[..., 1:-1, :])


def test_every_block_listens_to_its_own_conditions():
    network = PhotoUNet(3, 3, conditions=2, **SMALL).eval()
    assert len(network.scales) == 1 + 2 + 1
    x, conditions = torch.rand(2, 3, 8, 8), torch.rand(2, 2)
    answer = network(x, conditions)
    assert torch.allclose(network(x.flip(0), conditions.flip(0)), answer.flip(0), atol=1e-6)
    assert not torch.allclose(network(x, conditions.flip(0)), answer, atol=1e-3)
    for i, layer in enumerate(network.scales):
        kept = layer.bias.data.clone()
        layer.bias.data += 1
        assert not torch.allclose(network(x, conditions), answer, atol=1e-4), f"block {i} does not listen"
        layer.bias.data = kept


def test_the_logit_sees_every_resolution():
    network = PhotoUNet(3, 1, image_logit=True, **SMALL).eval()
    assert network.image_logit[0].in_features == 2 * (8 + 16)
    network(torch.rand(1, 3, 8, 8))[1].sum().backward()
    assert network.stem.weight.grad.abs().sum() > 0 and network.down[1][1].second.weight.grad.abs().sum() > 0
    assert network.head.weight.grad is None and network.up[0][0].first.weight.grad is None


def test_it_computes_in_the_dtype_of_its_weights_and_answers_in_that_of_the_image():
    network = PhotoUNet(3, 1, image_logit=True, **SMALL).eval()
    x = torch.rand(1, 3, 16, 16)
    exact = network(x)
    rough = network.to(torch.bfloat16)(x)
    assert rough[0].dtype == rough[1].dtype == torch.float32
    assert 0 < (rough[0] - exact[0]).abs().max() < 0.1


def test_the_names_of_the_weights_stay():
    """A network that was trained before must load."""
    names = set(PhotoUNet(3, 1, conditions=1, image_logit=True).state_dict())
    modules = {name.rpartition(".")[0] for name in names}
    assert {name.rpartition(".")[2] for name in names} == {"weight", "bias"}
    blocks = [f"down.{i}.{j}" for i in range(4) for j in range(2)] + [f"up.{i}.0" for i in range(3)]
    layers = ["stem", "head", "image_logit.0", "image_logit.2", "embed.0", "embed.2"]
    layers += [f"{name}.{i}" for name in ("shrink", "grow") for i in range(3)] + [f"scales.{i}" for i in range(11)]
    assert modules == {f"{b}.{part}" for b in blocks for part in ("norm", "first", "second")} | set(layers)


@pytest.mark.parametrize("changes", [{"down": (1,)}, {"up": (1, 1)}, {"up": ()}])
def test_numbers_of_blocks_must_fit_the_widths(changes):
    with pytest.raises(ValueError, match=r"down must be as long as widths.*got 2 widths.*Give a number"):
        PhotoUNet(3, 1, **SMALL | changes)


def test_input_that_does_not_fit_is_refused_before_any_work():
    network, x = PhotoUNet(3, 1, **SMALL), torch.rand(2, 3, 8, 8)
    for images in (x[:, :1], x[0], x[None]):
        with pytest.raises(ValueError, match=r"shape \(b, 3, h, w\), got .*Bring them"):
            network(images)
    with pytest.raises(ValueError, match=r"the shape None .*got \(2, 1\)\. Give no numbers"):
        network(x, torch.zeros(2, 1))
    other = PhotoUNet(3, 1, conditions=2, **SMALL)
    for conditions in (None, torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"the shape \(2, 2\) .*Give 2 numbers"):
            other(x, conditions)
