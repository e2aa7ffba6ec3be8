"""Pickling: weights travel as bytes, so that DataLoader workers start by any method."""

import copy
import io
import pickle

import pytest
import torch
from conftest import tiny_config
from torch import nn
from torch.utils.data import DataLoader
from workers import GIVE_UP, GreyImages

from sampdetox_transforms import Denoiser, SampDetox, Schedule, load_denoiser
from sampdetox_transforms.networks.denoiser import adapt
from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.networks.pickling import WeightsAsBytes
from sampdetox_transforms.networks.restorer import Restorer, RestorerConfig, Specialists
from sampdetox_transforms.networks.unet import UNet

SMALL = RestorerConfig(widths=(8, 16), down_blocks=(1, 2), up_blocks=(1,))


def tensors_pickled(thing) -> int:
    """How many tensors the pickle holds, each of which is a file descriptor between processes."""
    seen = []

    class Counting(pickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, torch.Tensor):
                seen.append(value)
            return NotImplemented

    Counting(io.BytesIO(), pickle.HIGHEST_PROTOCOL).dump(thing)
    return len(seen)


def test_a_worker_of_a_data_loader_gets_the_default_transform():
    """282 weights: forkserver passes 253 file descriptors at most."""
    detox = SampDetox("bundled", seed=0, dtype=torch.float32)
    assert len(detox.state_dict()) > 253
    loader = DataLoader(
        GreyImages(detox), batch_size=2, num_workers=1, multiprocessing_context="forkserver", timeout=GIVE_UP
    )
    found = torch.cat(list(loader))
    expected = torch.stack([GreyImages(detox)[i] for i in range(4)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    tiny = adapt(UNet(tiny_config()), "linear")
    return {
        "denoiser": tiny,
        "channels-last": copy.deepcopy(tiny).set_precision(None),
        "bfloat16": copy.deepcopy(tiny).set_precision(torch.bfloat16),
        "restorer": Restorer(SMALL),
        "specialists": Specialists(Restorer(SMALL), Restorer(SMALL)).requires_grad_(False),
        "photo": PhotoUNet(3, 1, widths=(8, 16), down=(1, 1), up=(1,), conditions=1, image_logit=True),
    }


@pytest.mark.parametrize("name", modules())
@pytest.mark.parametrize("how", ["pickle", "torch.save", "deepcopy"])
def test_every_weight_comes_back(name, how):
    module = modules()[name]
    if how == "pickle":
        assert tensors_pickled(module) == (3 if isinstance(module, Denoiser) else 0)  # of the schedule
        other = pickle.loads(pickle.dumps(module))
    elif how == "deepcopy":
        other = copy.deepcopy(module)
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other) is type(module)
    mine, others = dict(module.named_parameters()), dict(other.named_parameters())
    assert list(mine) == list(others)
    for key, value in mine.items():
        found = others[key]
        assert torch.equal(found, value) and found.data_ptr() != value.data_ptr(), key
        assert (found.dtype, found.stride(), found.requires_grad) == (value.dtype, value.stride(), value.requires_grad)
        assert type(found) is nn.Parameter
    assert not module.training or other.training
    if isinstance(module, Denoiser):
        assert other.schedule == module.schedule and other.max_level == module.max_level
        assert torch.equal(
            other(torch.ones(1, 3, 8, 8), torch.tensor([3])), module(torch.ones(1, 3, 8, 8), torch.tensor([3]))
        )


class Odd(WeightsAsBytes):
    """Everything that a user's network may do with its weights."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.listed = [self.two.bias]
        self.register_buffer("counted", torch.arange(5))
        self.register_buffer("hidden", torch.ones(2).double(), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("number", torch.tensor(7.0))
        self.register_buffer("strange", torch.rand(4, 6).t()[1:3])


def test_ties_buffers_and_odd_shapes_come_back():
    odd = Odd()
    other = pickle.loads(pickle.dumps(odd))
    assert other.two.weight is other.one.weight and other.listed[0] is other.two.bias
    for name, value in odd.named_buffers():
        assert torch.equal(getattr(other, name), value) and getattr(other, name).dtype == value.dtype, name
    assert other.nothing is None and "hidden" not in other.state_dict()
    assert tensors_pickled(odd) == 0


def test_weights_of_a_pickle_are_its_own_and_can_be_changed():
    module = Restorer(SMALL)
    other = pickle.loads(pickle.dumps(module))
    before = {name: value.clone() for name, value in other.named_parameters()}
    with torch.no_grad():
        other.stem.weight.zero_()
    assert module.stem.weight.any()
    assert all(torch.equal(value, before[name]) for name, value in other.named_parameters() if name != "stem.weight")
    other.to(torch.float64).load_state_dict(module.state_dict())
    assert torch.equal(other.stem.weight, module.stem.weight.double())


def test_a_shallow_copy_shares_the_weights():
    module = Restorer(SMALL)
    assert copy.copy(module).stem.weight is module.stem.weight


def test_the_transform_keeps_one_schedule(tiny):
    detox = pickle.loads(pickle.dumps(SampDetox(tiny)))
    assert detox.schedule is detox.denoiser.schedule
    assert tensors_pickled(SampDetox("bundled")) == 3


def test_a_network_that_cannot_be_pickled_says_so_as_before():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(Denoiser(lambda x_t, t: x_t, Schedule.named("linear")))
    assert load_denoiser((torch.sin, "linear")).network is torch.sin
