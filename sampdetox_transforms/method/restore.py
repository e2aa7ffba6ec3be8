"""Past the paper: look for the trigger before diffusion, and take its region out instead of noising it.

A small patch keeps its mean under the noise of Algorithm 1's local stage, and the denoiser rebuilds it. Here
``Specialists`` say which pixels do not belong; they are filled from those around them, without any information from
inside, and looked at again. A trigger all over the image leaves nothing to fill from: the network's estimate of the
image without it, and a higher noise level, take its place. Pure functions on (b, c, h, w) tensors in [-1, 1].
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.answer import Answer
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.noise import fresh_noise, subset
from sampdetox_transforms.method.sampdetox import Purified, global_stage
from sampdetox_transforms.method.samplers import Denoiser, Noise, Step, ddim_step, grid
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.method.search import dilate, hysteresis, local_suspicion
from sampdetox_transforms.method.search_scale import enlarge, enlarge_map, shrink
from sampdetox_transforms.networks.restorer import Specialists

SEARCH = 2  # networks that look at an image

# How much of the estimate ``lightened`` takes. With the networks before their last training, whose ``doubt`` was 1.55
# (it has its own with each calibration), on held-out images of GTSRB (means of five victims CA / PA / ASR, then
# how often three small classifiers still agree with themselves) and of CIFAR-10 (the latter), l the logit:
# 1 P(l + 1): .984 / .375 / .610, .990, .966        3 P(l - 1): .989 / .409 / .526, .992, .949
# 4 P(l - 1): .984 / .383 / .529, .985, not tried   3 P(l - 1.55): .988 / .387 / .553, .993, .958
GAIN = 3.0


def purify_and_restore(
    x0: Float[Tensor, "b c h w"],
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    restorer: Specialists,
    calibration: Calibration,
    t1: float = 12,
    t2: float = 120,
    stride: float = 60,
    step: Step = ddim_step,
    seed: float = -0.5,
    low: float = -1.0,
    margins: tuple[int, ...] = (0, 1),
    largest: float = 0.4,
    estimate: bool = True,
    noise: Noise = fresh_noise,
) -> Purified:
    """The global stage for every image, and for those with a trigger a local stage that restores its region.

    Args:
        x0: suspected images in [-1, 1].
        denoiser, schedule, stride, step, noise: as in ``purify``.
        restorer: finds triggers and fills regions.
        calibration: from what suspicion on an image is taken for a triggered one.
        t1: level of the global stage; a filled image goes through it as well.
        t2: the level for images with a dense trigger, after the network's estimate has taken their place.
        seed: logit from which a pixel of a flagged image is located.
        low: logit from which a pixel next to a located one is located as well.
        margins: for each look at the image, how many pixels of an image of 32 the mask is grown by: what is found
            although it was filled reaches beyond the mask. At least 1 where the image was shrunk to be searched.
        largest: share of the pixels from which on a mask is too large to be filled; the trigger counts as dense.
        estimate: start from ``lightened``, which takes away a part of what is too faint to be flagged, instead of from
            the image.

    Network calls: 3 for an image without a trigger at t1 <= stride (a search is two, see ``Specialists``); at most
    3 * len(margins) + 2 with a local one, and one more for each stride of t2 with a dense one.
    """
    levels = grid(t1, stride)
    small = shrink(x0)
    shrunk = small.shape != x0.shape
    answer = restorer(small)
    x = lightened(small, answer, calibration) if estimate else small
    stage1 = global_stage(enlarge(x0, small, x), denoiser, schedule, levels, step, noise)
    suspicion = local_suspicion(answer.local)
    share = calibration.clean_share(suspicion, answer.dense)
    flagged = share.detach() < calibration.false_alarm_rate
    mask = torch.zeros_like(x0[:, :1], dtype=torch.bool)
    timestep_map = torch.zeros_like(mask, dtype=torch.float64)
    calls = torch.full((len(x0),), len(levels) - 1 + SEARCH, device=x0.device)
    image = stage1
    index = flagged.nonzero()[:, 0]
    if len(index):
        first = Answer(*(part[index] for part in answer))
        filled, found, dense, looked = remove_trigger(
            small[index],
            first,
            restorer,
            calibration,
            seed=seed,
            low=low,
            margins=tuple(max(margin, shrunk) for margin in margins),
            largest=largest,
        )
        filled, found = enlarge(x0[index], small[index], filled, found), enlarge_map(found.to(x0), x0) > 0
        again, level = torch.empty_like(filled), torch.where(dense, float(t2), float(t1))
        for these, start in ((~dense, t1), (dense, t2)):
            if these.any():
                own = subset(subset(noise, index), these.nonzero()[:, 0])
                again[these] = global_stage(filled[these], denoiser, schedule, grid(start, stride), step, own)
        image = stage1.index_put((index,), again)
        mask = mask.index_put((index,), found)
        timestep_map = timestep_map.index_put((index,), level.double()[:, None, None, None].expand_as(found))
        diffusions = torch.where(dense, len(grid(t2, stride)) - 1, len(levels) - 1)
        calls = calls.index_put((index,), calls[index] + looked + diffusions)
    sigma1, sigma2 = float(schedule.sigma(t1)), float(schedule.sigma(t2))
    probability = enlarge_map(answer.local, x0).double().sigmoid()
    return Purified(image, stage1, probability, timestep_map, calls, sigma1, sigma2, mask, suspicion, share)


def remove_trigger(
    x: Float[Tensor, "b c h w"],
    answer: Answer,
    restorer: Specialists,
    calibration: Calibration,
    *,
    seed: float,
    low: float,
    margins: tuple[int, ...],
    largest: float,
) -> tuple[Tensor, Bool[Tensor, "b 1 h w"], Bool[Tensor, " b"], Int[Tensor, " b"]]:
    """Fill what was located, look again, and fill what still stands out: image, mask, whether dense, network calls.

    Once filled, pixels stay in the mask, so that no look brings back what an earlier one took out.
    """
    local, dense_from = calibration.thresholds
    dense = answer.dense > dense_from
    found = locate(answer.local, seed=seed, low=low, margin=margins[0])
    # where the image is flagged for its local suspicion alone, what stands out most is located whatever its logit
    alone = (local_suspicion(answer.local) > local) & ~found.any(dim=(1, 2, 3))
    peak = dilate(answer.local >= answer.local.amax(dim=(1, 2, 3), keepdim=True), 1)
    found = torch.where(alone[:, None, None, None], peak, found)
    too_large = found.float().mean(dim=(1, 2, 3)) > largest
    dense = dense | too_large
    x = torch.where(dense[:, None, None, None], answer.image.clamp(-1, 1), x)
    mask = found & ~too_large[:, None, None, None]
    calls = torch.zeros(len(x), dtype=torch.long, device=x.device)
    index, filled = mask.any(dim=(1, 2, 3)).nonzero()[:, 0], x
    for margin in (*margins[1:], None):
        if not len(index):
            break
        filled = filled.index_put((index,), fill(x[index], mask[index], restorer))
        calls[index] += 1
        if margin is not None:
            more = locate(restorer(filled[index]).local, seed=seed, low=low, margin=margin)
            calls[index] += SEARCH
            wider = mask[index] | more
            fits = (wider.float().mean(dim=(1, 2, 3)) <= largest) & (more & ~mask[index]).any(dim=(1, 2, 3))
            index, wider = index[fits], wider[fits]
            mask = mask.index_put((index,), wider)
    return filled, mask, dense, calls


def lightened(x: Float[Tensor, "b c h w"], answer: Answer, calibration: Calibration) -> Float[Tensor, "b c h w"]:
    """The image with less of a dense trigger, as far as one is likely: x + GAIN P(trigger) (E[image | trigger] - x).

    More than the estimate takes, as that is a mean over all that the image may be: half of a wave, a quarter of a
    blended picture. Half of a trigger is often no trigger. P is 1/2 where one clean image in ten is as suspicious.
    """
    likely = (answer.dense - calibration.doubt).sigmoid()[:, None, None, None]
    return torch.lerp(x, answer.image, GAIN * likely).clamp(-1, 1)


def locate(logits: Float[Tensor, "b 1 h w"], *, seed: float, low: float, margin: int) -> Bool[Tensor, "b 1 h w"]:
    """Pixels of a trigger: above ``low`` and connected to one above ``seed``, grown by the margin."""
    pixels = max(1, round(margin * min(logits.shape[-2:]) / 32)) if margin else 0
    return dilate(hysteresis(logits, seed, low), pixels)


def fill(x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"], restorer: Specialists) -> Float[Tensor, "b c h w"]:
    """The masked pixels as the network predicts them from the others; nothing in them is looked at."""
    return torch.where(mask, restorer(x, mask).image.clamp(-1, 1), x)
