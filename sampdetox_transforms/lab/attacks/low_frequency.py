"""LF, the low-frequency or "smooth" trigger (Zeng et al. 2021): a smooth pattern, added to the image."""

import math
from collections.abc import Callable
from os import PathLike

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sampdetox_transforms.lab.attacks.blended import resize_picture
from sampdetox_transforms.lab.attacks.label_consistent import check_training_images, frozen
from sampdetox_transforms.lab.checks import check_images, load_floats


def low_frequency(images: Float[Tensor, "*n c h w"], pattern: Float[Tensor, "k y x"]) -> Float[Tensor, "*n c h w"]:
    """x' = clip(x + U), where U is the pattern at the images' size.

    The attack needs ``pattern``: keep it with the victim. Zeng et al. optimise it on a clean network, as does
    ``optimise_pattern``; ``load_pattern`` reads their results. BackdoorBench truncates to 8 bits; here the result stays
    float, up to 1/255 brighter.

    Args:
        images: (..., c, h, w) in [0, 1].
        pattern: (c, y, x) or (1, y, x) in [0, 1], usually up to .2; resized as ``resize_picture`` says.

    Raises:
        ValueError: images or pattern outside [0, 1], other channels, a pattern that is 0 everywhere.
        TypeError: images or pattern that are no floating-point tensors.
    """
    check_images(images)
    resized = resize_picture(pattern, images, name="pattern")
    if not bool(resized.any()):
        raise ValueError("pattern must be above 0 somewhere, got 0 everywhere. Such a trigger changes no image.")
    return (images + resized).clamp(0, 1)


def load_pattern(path: str | PathLike[str]) -> Float[Tensor, "c h w"]:
    """Read a pattern that Zeng et al. published: a float .npy file of shape (1, h, w, c) or (h, w, c), in [0, 1].

    Raises:
        OSError: no such file.
        ValueError: not a plain .npy file, or not such an array. BackdoorBench's files in 0...255 are refused: among
            them are files in [0, .2] that BackdoorBench adds on the scale of 0...255, where they change no image.
    """
    array = load_floats(path, "Divide one in 0...255 by 255.")
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"{path} must have the shape (1, h, w, c) or (h, w, c), got {array.shape}. Transpose it.")
    pattern = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    check_images(pattern, str(path))
    return pattern


def optimise_pattern(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    target_label: int,
    *,
    limit: float = 0.2,
    passes: int = 50,
    fooling_rate: float = 0.2,
    sigma: float = 6.0,
    overshoot: float = 0.02,
    iterations: int = 50,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "c h w"]:
    """Make LF's pattern on a clean network: a smooth universal perturbation towards the target class.

    Each pass takes the images whose class the pattern does not change yet, and with S, a Gaussian filter with zeros
    beyond the borders, sets U <- S(U + S(sum of the DeepFool steps r to the target class)), and U to [0, limit] by its
    minimum and maximum (Zeng et al. 2021, section 5, and their code). It ends when ``fooling_rate`` is reached, or when
    five passes bring less than .01; the best pattern is returned.

    Departures: all images of a pass at once, where the original changes and smooths the pattern after each image;
    DeepFool with 50 iterations in place of 200, and against the leading class, where the original keeps to the first; a
    symmetric filter of 31 values in place of 30; the rate is taken of ``images``, not of a test set.

    Args:
        model: a clean classifier, [0, 1] images to logits; used in eval mode and left as it was.
        images: training images, (n, c, h, w) in [0, 1]; 100 in the original. Those that the model takes for the target
            class are left out.
        target_label: the attacker's class.
        limit: largest value of the pattern, in (0, 1].
        passes, fooling_rate: when to end; the rate is the share of images whose class the pattern changes.
        sigma: of the filter, in pixels; 6 is for 32x32.
        overshoot, iterations: of DeepFool (Moosavi-Dezfooli et al. 2016).
        progress: called with (passes done, largest number of passes), and with equal numbers at the end.

    Raises:
        ValueError: images outside [0, 1] or all of the target class, settings out of range, a model whose class no
            step moves to the target.
        TypeError: images that are no floating-point tensor.
    """
    check_training_images(images)
    if passes < 1 or iterations < 1 or not 0 < limit <= 1 or not 0 < fooling_rate <= 1 or not 0 < sigma < math.inf:
        raise ValueError(
            f"passes and iterations must be 1 or more, limit and fooling_rate in (0, 1] and sigma above 0, got "
            f"{passes}, {iterations}, {limit}, {fooling_rate} and {sigma}. Leave them out for the defaults."
        )
    pattern = best = images.new_zeros(images.shape[1:])
    rates: list[float] = []
    with frozen(model):
        classes = _classes(model, images, target_label)
        images, classes = images[classes != target_label], classes[classes != target_label]
        if not len(images):
            raise ValueError("images must have others than the target class's, got none to the model. Add some.")
        kept = torch.ones_like(classes, dtype=torch.bool)
        for done in range(1, passes + 1):
            start = (images[kept] + pattern).clamp(0, 1)
            steps, reached = _deepfool(model, start, target_label, overshoot, iterations)
            pattern = _smooth(pattern + _smooth(steps[reached].sum(dim=0), sigma), sigma)
            low, high = pattern.aminmax()
            if not bool(high > low):
                raise ValueError(
                    f"the model must change to class {target_label} within {iterations} DeepFool iterations, got none "
                    f"of {len(start)} images. Raise iterations, or take a trained classifier."
                )
            pattern = limit * (pattern - low) / (high - low)
            kept = _classes(model, (images + pattern).clamp(0, 1), target_label) == classes
            rates.append(1 - float(kept.double().mean()))
            if rates[-1] >= max(rates):
                best = pattern
            settled = len(rates) >= 5 and max(rates[-5:]) - min(rates[-5:]) < 0.01
            if rates[-1] >= fooling_rate or settled:
                break
            progress(done, passes)
    progress(passes, passes)
    return best


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor, target_label: int) -> Tensor:
    logits = model(images)
    if logits.ndim != 2 or not 0 <= target_label < logits.shape[1]:
        raise ValueError(
            f"target_label must be a class of the model, whose outputs have the shape {tuple(logits.shape)}, got "
            f"{target_label}. Was the model trained on another data set?"
        )
    return logits.argmax(dim=1)


def _deepfool(
    model: nn.Module, images: Float[Tensor, "n c h w"], target_label: int, overshoot: float, iterations: int
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, " n"]]:
    """Targeted DeepFool of all images at once: the steps to the target class, and which images they bring there."""
    steps = torch.zeros_like(images)
    left = torch.arange(len(images), device=images.device)  # the images that are not there yet
    for _ in range(iterations):
        x = (images[left] + steps[left]).requires_grad_()
        logits = model(x)
        leading = logits.detach().argmax(dim=1)
        gap = logits.gather(1, leading[:, None])[:, 0] - logits[:, target_label]
        (slope,) = torch.autograd.grad(-gap.sum(), x)
        length = slope.square().sum(dim=(1, 2, 3)).clamp(min=1e-12)
        move = (1 + overshoot) * (gap.detach() / length)[:, None, None, None] * slope
        away = leading != target_label
        left = left[away]
        if not len(left):
            break
        steps[left] += move[away]
    return steps, _classes(model, images + steps, target_label) == target_label


def _smooth(values: Float[Tensor, "c h w"], sigma: float) -> Float[Tensor, "c h w"]:
    """A Gaussian filter up to 2.5 sigma from the centre, with zeros beyond the borders."""
    radius = round(2.5 * sigma)

    def filter_along(size: int) -> Float[Tensor, "n n"]:
        place = torch.arange(size, dtype=torch.float64, device=values.device)
        distance = (place[:, None] - place).abs()
        taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
        total = float(torch.exp(-(taps**2) / (2 * sigma**2)).sum())
        return torch.where(distance <= radius, torch.exp(-(distance**2) / (2 * sigma**2)), 0.0) / total

    height, width = values.shape[-2:]
    return (filter_along(height) @ values.double() @ filter_along(width)).to(values.dtype)
