"""10,000 generated calls: each gives a right result, or is refused with rule, value and remedy. Run with -m slow -s."""

import random
import re
from collections import Counter
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from contract import assert_same_kind
from torch import Tensor
from torchvision import tv_tensors

from sampdetox_transforms import SampDetox

CALLS = 10_000
REFUSED = (ValueError, TypeError, OSError)
# a rule, "got" and what was given, and a sentence that says what to do
RULE_VALUE_REMEDY = re.compile(r"\b(must|may|can|cannot|has|have|are|is|needs?)\b.*\bgot\b.+[.:] .+", re.DOTALL)
NAN, INFINITE = float("nan"), float("inf")

# What a setting may be given: right values, and wrong ones of every kind. Some pairs of right ones do not fit.
SETTINGS: dict[str, tuple[tuple, tuple]] = {
    "preset": (("restore", "ddim", "ddim", "paper-linear"), ("Restore", "", 3, None)),
    "t1": ((0, 5, 12, 20.5, 160, np.float32(7), np.int64(9)), (161, -1, NAN, INFINITE, "20", True)),
    "t2": ((0, 5, 40, 120, 160, np.float64(60)), (161, -0.1, NAN, "x", [120])),
    "sampler": (("ddim",), ("ddpm", "DDIM", "euler", 1)),
    "stride": ((20, 60, 100, 33.3), (0, -5, NAN, INFINITE, "20")),
    "schedule": (("linear", "cosine", "scaled_linear"), ("quadratic", 7)),
    "mean": (((0.5,), (0.5, 0.4, 0.3)), ((0.5, 0.4), (), ("a",), NAN)),
    "std": (((0.2,), (0.2, 0.2, 0.3)), ((0.0,), (-1.0,), (NAN,), "0.2")),
    "device": (("cpu",), ("cuda:99", "gpu", 3.5)),
    "dtype": ((torch.float32, torch.bfloat16, torch.float64), (torch.uint8, "float32")),
    "batch_size": ((1, 2, 64, np.int64(2)), (0, -1, 1.5, "2", True)),
    "seed": ((0, 3, -1, 2**70, np.int64(3)), (1.5, "3", True)),
}


def settings_of(rng: random.Random) -> dict[str, Any]:
    """None to three settings beside the seed."""
    names = rng.sample(sorted(SETTINGS), k=rng.choice((0, 1, 1, 2, 3)))
    if "mean" in names or "std" in names:
        names = sorted({*names, *(("mean", "std") if rng.random() < 0.9 else ())})
    chosen = {name: rng.choice(SETTINGS[name][rng.random() < 0.15]) for name in names}
    if rng.random() < 0.8:
        chosen["seed"] = 0
    return {"preset": rng.choice(("restore", "ddim")), **chosen}


def shape_of(rng: random.Random) -> tuple[int, ...]:
    lead = rng.choice(((), (), (), (1,), (2,), (0,), (2, 1)))
    channels = rng.choice((3, 3, 3, 3, 3, 3, 1, 1, 1, 2, 4, 0))
    size = rng.choice(((8, 8), (9, 12), (1, 1), (1, 7), (20, 5), (20, 5), (8, 8), (0, 4)))
    shape = (*lead, channels, *size)
    return shape if rng.random() < 0.93 else shape[-2:]


def image_of(rng: random.Random) -> Any:
    """An image of some kind, right or wrong."""
    shape, kind = shape_of(rng), rng.random()
    values = torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    if rng.random() < 0.08:
        values = values * rng.choice((255, -1, 2, 1.00001)) + rng.choice((0.0, 0.0, NAN, INFINITE))
    if kind < 0.2:
        mode = rng.choice(("RGB", "RGB", "RGB", "L", "L", "L", "RGBA", "P", "F", "1"))
        size = shape[:-3:-1]
        return PIL.Image.new(mode, size) if rng.random() < 0.3 else PIL.Image.effect_noise(size, 60).convert(mode)
    if kind < 0.35:
        return (values * 255).clamp(0, 255).nan_to_num().to(torch.uint8)
    if kind < 0.8:
        dtypes = (torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
        values = values.to(rng.choice((*dtypes, torch.int64, torch.bool, torch.complex64)))
        return rng.choice((values, values, values.flip(-1), values.mT))
    if kind < 0.9:
        return (tv_tensors.Video if values.ndim > 3 and rng.random() < 0.5 else tv_tensors.Image)(values)
    return rng.choice((None, "image.png", 3, values.numpy(), [], {}, (), tv_tensors.Mask(values), b"bytes"))


def sample_of(rng: random.Random, image: Any) -> Any:
    """The image alone, or in a sample."""
    return rng.choice((image, image, image, (image, 7), {"image": image, "label": torch.tensor(3)}, [image, None]))


def image_in(sample: Any) -> Any:
    if isinstance(sample, dict):
        return sample.get("image")
    return sample[0] if isinstance(sample, (tuple, list)) and sample else sample


def check_result(result: Any, image: Any, settings: dict[str, Any]) -> None:
    """The kind, shape, dtype and range of the image, and finite."""
    assert_same_kind(result, image, (-INFINITE, INFINITE) if "mean" in settings else (0.0, 1.0))
    if isinstance(result, Tensor):
        assert result.double().isfinite().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_calls(tiny, tiny_grey):
    outcomes, wrong = Counter(), []
    for number in range(CALLS):
        rng = random.Random(number)
        weights, settings = rng.choice((tiny, tiny, tiny, tiny_grey)), settings_of(rng)
        sample = sample_of(rng, image_of(rng))
        stage = "settings"
        try:
            detox = SampDetox(weights, **settings)
            stage = "call"
            result = image_in(detox(sample))
            check_result(result, image_in(sample), settings)
            outcomes["right result"] += 1
        except REFUSED as error:
            outcomes[f"{stage}: {type(error).__name__}"] += 1
            if not RULE_VALUE_REMEDY.search(str(error)):
                wrong.append((number, settings, type(error).__name__, str(error)[:200]))
        except Exception as error:  # anything else is what this test looks for
            wrong.append((number, settings, type(error).__name__, str(error)[:200]))
            outcomes[f"WRONG {stage}: {type(error).__name__}"] += 1
    print("", *(f"{count:6}  {name}" for name, count in sorted(outcomes.items())), sep="\n")
    assert not wrong, f"{len(wrong)} calls, the first: " + "\n".join(map(str, wrong[:20]))
    assert outcomes["right result"] > CALLS / 5, "too few calls were right to say anything"
