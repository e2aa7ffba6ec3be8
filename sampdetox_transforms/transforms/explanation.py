"""``Explanation``: what was done to an image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.result import Found, Purified, Retouched
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.transforms.images import Normalisation, from_core, unit_like
from sampdetox_transforms.transforms.presets import Preset


@dataclass(frozen=True)
class Explanation:
    """What was done to an image or a batch, from ``SampDetox.explain``; leading dimensions are the input's.

    Attributes:
        image, stage1: the result, and the image after the global stage, in the input's own type and range.
        timestep_map: (..., 1, h, w), the noise level in [0, t2] of each pixel in the local stage.
        sigma_map: (..., 1, h, w), the same as noise std beside an image in [-1, 1]; times 127.5 in grey levels.
        network_calls: (...), how often each image went through a network.
        sigma1, sigma2: noise std of the global stage at level t1, and the local stage's at level t2, in the same unit.
        level1: (...), the noise level of each image in the global stage, which is higher for one in doubt (``Restore``
            only, else None).
        difference_map: (..., 1, h, w), how much the global stage changed each pixel (Algorithm 1 only, else None).
        found: what the search found (``Restore`` only, else None): ``probability`` and ``mask`` (..., 1, h, w),
            ``dense`` and ``p_value`` (...). An image is treated where its p-value, the share of clean images that look
            at least as suspicious, is below the calibration's rate.
        lightened: (..., c, h, w), what was taken from the image besides noise before the global stage, in units of
            [0, 1]; times 255 in grey levels. It holds what a shared trigger took, and what a dense one that is too
            faint to be flagged may have added. None where nothing is taken.
        retouched: what was done without a network (``Restore`` only, else None): ``colour``, ``waves``, ``jittered``,
            ``resampled`` and ``sharpened``, (...) each.
        matched: (...), whether the shared trigger was recognised and taken out first; None without one.
    """

    image: Any
    stage1: Any
    timestep_map: Tensor
    sigma_map: Tensor
    network_calls: Tensor
    sigma1: float
    sigma2: float
    difference_map: Tensor | None = None
    found: Found | None = None
    lightened: Tensor | None = None
    retouched: Retouched | None = None
    matched: Tensor | None = None
    level1: Tensor | None = None


TOLD: ContextVar[list[Explanation] | None] = ContextVar("told", default=None)


def explanation_of(
    result: Purified, schedule: Schedule, normalisation: Normalisation | None, inpt: Any, tensor: Tensor
) -> Explanation:
    """What the core did to ``inpt``, whose values ``tensor`` are, in the input's shapes and units."""
    lead, n = tensor.shape[:-3], len(result.image)
    planes = max(1, n // max(1, lead.numel()))  # 3 where a grey network took the colours one by one

    def shaped(values: Tensor, together: Callable[[Tensor], Tensor] = lambda v: v.amax(1)) -> Tensor:
        values = together(values.unflatten(0, (n // planes, planes))) if planes > 1 else values
        return values.reshape((*lead, *values.shape[1:])).to(tensor.device)

    found, lightened = result.found, result.lightened
    matched, retouched = result.matched, result.retouched
    if found is not None:
        least = shaped(found.p_value, lambda v: v.amin(1))
        found = Found(shaped(found.probability), shaped(found.mask), shaped(found.dense.long()) > 0, least)
    if retouched is not None:
        waves = shaped(retouched.waves.long()) > 0
        of_all = (retouched.jittered, retouched.resampled, retouched.sharpened)
        retouched = Retouched(shaped(retouched.colour), waves, *map(shaped, of_all))
    return Explanation(
        image=from_core(result.image, normalisation, inpt, tensor),
        stage1=from_core(result.stage1, normalisation, inpt, tensor),
        timestep_map=shaped(result.timestep_map),
        sigma_map=shaped(sigmas(schedule, result.timestep_map)),
        network_calls=shaped(result.network_calls, lambda v: v.sum(1)),
        sigma1=result.sigma1,
        sigma2=result.sigma2,
        difference_map=None if result.difference_map is None else shaped(result.difference_map),
        found=found,
        lightened=None if lightened is None else unit_like(lightened, tensor).to(tensor.device),
        matched=None if matched is None else shaped(matched.long()) > 0,
        retouched=retouched,
        level1=None if result.level1 is None else shaped(result.level1),
    )


def sigmas(schedule: Schedule, levels: Tensor) -> Tensor:
    """The std of each pixel's noise: asked once for an image that has one level everywhere, as ``Restore`` gives it."""
    one = levels[..., :1, :1]
    if torch.equal(levels, one.expand_as(levels)):
        return schedule.sigma(one).expand_as(levels).contiguous()
    return schedule.sigma(levels)


def nothing_done(x0: Tensor, settings: Preset, schedule: Schedule, with_trigger: bool) -> Purified:
    """The result for no images."""
    empty, none = x0.new_zeros((0, 1, *x0.shape[2:]), dtype=torch.float64), x0.new_zeros(0, dtype=torch.float64)
    sigma1, sigma2 = (float(schedule.sigma(level)) for level in (settings.t1, settings.t2))
    calls = torch.zeros(0, dtype=torch.long)
    matched = none.bool() if with_trigger else None
    if isinstance(settings, Restore):
        found = Found(empty, empty.bool(), none.bool(), none)
        retouched = Retouched(none, none.bool(), none, none, none)
        return Purified(
            *(x0, x0, empty, calls, sigma1, sigma2),
            found=found,
            lightened=x0,
            matched=matched,
            retouched=retouched,
            level1=none,
        )
    lightened = x0 if with_trigger else None
    return Purified(x0, x0, empty, calls, sigma1, sigma2, difference_map=empty, lightened=lightened, matched=matched)


@contextmanager
def telling() -> Iterator[list[Explanation]]:
    """Within it, calls note what they did in the list: ``explain`` for who calls the module, so that its hooks fire."""
    told: list[Explanation] = []
    token = TOLD.set(told)
    try:
        yield told
    finally:
        TOLD.reset(token)
