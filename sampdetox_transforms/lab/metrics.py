"""What the paper measures: CA, PA and ASR with intervals, visibility v and robustness eta_r (sections 3.1, 5.1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.maps import ssim_map
from sampdetox_transforms.networks.denoiser import Denoiser

Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Share:
    """A share, or a difference of shares, with its 95 % interval and the number of images."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Share:
    """A share with Wilson's 95 % interval (Wilson 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n] with n 1 or more, got {successes} of {n}. Give more images.")
    value = successes / n
    centre = (value + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else centre - half  # exactly, where rounding would leave 1e-17
    high = 1.0 if successes == n else centre + half
    return Share(value, low, high, n)


def predicted(outputs: Float[Tensor, "n k"], num_classes: int | None = None) -> Int[Tensor, " n"]:
    """The class of the largest output for each image.

    Raises:
        ValueError: outputs of another shape than (n, num_classes), or not finite.
    """
    if outputs.ndim != 2 or 0 in outputs.shape or (num_classes is not None and outputs.shape[1] != num_classes):
        expected = "(n, num_classes)" if num_classes is None else f"(n, {num_classes})"
        raise ValueError(
            f"outputs must have the shape {expected}, got {tuple(outputs.shape)}. "
            "Was the model trained on another data set?"
        )
    if not bool(outputs.isfinite().all()):
        raise ValueError("outputs must be finite, got NaN or infinity. Check the model's weights and input range.")
    return outputs.argmax(dim=1)


def accuracy(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"], num_classes: int | None = None) -> Share:
    """Share of predictions that equal the true label: CA on clean images, PA on triggered ones.

    For PA the triggered images are those of ``TriggeredDataset``, and ``labels`` its ``targets``.

    Raises:
        ValueError: nothing, unequal lengths, labels or predictions outside the classes.
        TypeError: outputs in place of predictions.
    """
    _check_labels(num_classes, predictions=predictions, labels=labels)
    return wilson(int((predictions == labels).sum()), len(labels))


def attack_success(
    predictions: Int[Tensor, " n"],
    labels: Int[Tensor, " n"],
    attacker_labels: Int[Tensor, " n"],
    num_classes: int | None = None,
) -> Share:
    """ASR: share of triggered images that are classified as the attacker wants, true label and wish being different.

    ``labels`` and ``attacker_labels`` are the ``targets`` and ``attacker_labels`` of ``TriggeredDataset``.

    Raises:
        ValueError: what ``accuracy`` refuses, and images whose true label is the attacker's.
        TypeError: outputs in place of predictions.
    """
    _check_labels(num_classes, predictions=predictions, labels=labels, attacker_labels=attacker_labels)
    same = int((labels == attacker_labels).sum())
    if same:
        raise ValueError(
            f"true labels must differ from the attacker's, got {same} of {len(labels)} alike, which count as success "
            "without any trigger. TriggeredDataset leaves them out."
        )
    return wilson(int((predictions == attacker_labels).sum()), len(labels))


def backdoor_shares(
    clean: Int[Tensor, " n"],
    labels: Int[Tensor, " n"],
    triggered: Int[Tensor, " m"] | None = None,
    targets: Int[Tensor, " m"] | None = None,
    attacker_labels: Int[Tensor, " m"] | None = None,
    num_classes: int | None = None,
) -> dict[str, Share]:
    """CA of predictions for clean images; with predictions for triggered ones PA and ASR, too. The one place for them.

    Raises:
        ValueError, TypeError: what ``accuracy`` and ``attack_success`` refuse.
    """
    result = {"CA": accuracy(clean, labels, num_classes)}
    if triggered is not None and targets is not None and attacker_labels is not None:
        result["PA"] = accuracy(triggered, targets, num_classes)
        result["ASR"] = attack_success(triggered, targets, attacker_labels, num_classes)
    return result


def paired_difference(first: Bool[Tensor, " n"], second: Bool[Tensor, " n"]) -> Share:
    """Share of ``first`` minus share of ``second``, where both were measured on the same images.

    The 95 % interval is Newcombe's for paired shares, from two Wilson intervals and their correlation (Newcombe 1998,
    Statistics in Medicine 17:2635, method 10).

    Args:
        first, second: whether each image was a success, such as ``predictions == labels`` with and without a defense.

    Raises:
        ValueError: nothing, or unequal lengths.
        TypeError: what is not boolean.
    """
    for name, values in (("first", first), ("second", second)):
        if values.dtype != torch.bool:
            raise TypeError(f"{name} must be boolean, got {values.dtype}. Use predictions == labels.")
    _check_lengths(first=first, second=second)
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    a, b = wilson(both + one, n), wilson(both + other, n)
    margins = (both + one) * (other + neither) * (both + other) * (one + neither)
    cross = both * neither - one * other
    cross = max(cross - n / 2, 0) if cross > 0 else cross  # continuity correction
    phi = cross / math.sqrt(margins) if margins else 0.0

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0))

    difference = (one - other) / n
    low = difference - distance(a.value - a.low, b.high - b.value)
    return Share(difference, low, difference + distance(a.high - a.value, b.value - b.low), n)


def visibility(
    x: Float[Tensor, "*n c h w"],
    x_poisoned: Float[Tensor, "*n c h w"],
    *,
    window: str = "uniform",
    data_range: float = 1.0,
    crop: bool = True,
) -> Float[Tensor, "*n"]:
    """v = (1 - SSIM) / 2 of each image (section 3.1), float64: 0 where both are equal.

    The defaults are those of scikit-image's ``structural_similarity`` on [0, 1]. The paper states no settings, and none
    that were tried give its numbers.

    Args:
        x, x_poisoned: clean and triggered images, (..., c, h, w) in [0, 1].
        window, data_range: see ``ssim_map``.
        crop: average over the pixels whose whole window is inside the image, as scikit-image does. False takes all
            pixels, with mirrored borders: triggers in a corner then count in full.

    Raises:
        ValueError: unequal shapes, images outside [0, 1], smaller than the window with ``crop``, or no images.
    """
    if x.shape != x_poisoned.shape or x.ndim < 3 or 0 in x.shape:
        raise ValueError(
            f"x and x_poisoned must have one shape (..., c, h, w), got {tuple(x.shape)} and {tuple(x_poisoned.shape)}. "
            "Give each image beside its triggered copy."
        )
    for name, values in (("x", x), ("x_poisoned", x_poisoned)):
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"{name} must be in [0, 1], got values from {values.min():.4g} to {values.max():.4g}. "
                "Measure before Normalize; divide 8-bit images by 255."
            )
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range must be above 0 and finite, got {data_range}. 1 is that of these images.")
    flat, flat_poisoned = (v.double().reshape(-1, *v.shape[-3:]) * 2 - 1 for v in (x, x_poisoned))
    similarity = ssim_map(flat, flat_poisoned, window=window, data_range=data_range)
    if crop:
        radius = 3 if window == "uniform" else 5
        side = min(x.shape[-2:])
        if side <= 2 * radius:
            raise ValueError(
                f"images must be {2 * radius + 1} pixels or more on both sides for this window, got {side}. "
                "Take crop=False."
            )
        similarity = similarity[..., radius:-radius, radius:-radius]
    return ((1 - similarity.mean(dim=(1, 2, 3))) / 2).view(x.shape[:-3])


@torch.no_grad()
def robustness(
    model: Callable[[Tensor], Tensor],
    x_poisoned: Float[Tensor, "b c h w"],
    attacker_labels: Int[Tensor, " b"] | int,
    *,
    draws: int = 1,
    steps: int = 10,
    clip: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b draws"]:
    """eta_r (section 3.1): the noise share at which the prediction of (1 - eta) x_p + eta n leaves the target.

    A bisection of [0, 1] for each image and each draw of n ~ N(0, 1), to within 2^-``steps``. It finds the smallest
    such share where the prediction leaves once and stays away; where it comes back, one of the crossings. 0: the
    attack failed without noise; 1: no share that was tried undid it. The paper's eta_r is the mean over the draws; it
    states neither their number nor the range of x, on which eta_r depends: here it is the range that is given.

    Args:
        model: images to outputs (b, k), in eval mode; called ``draws * steps + 1`` times.
        x_poisoned: triggered images as the model takes them.
        attacker_labels: the attacker's class, of all images or of each.
        draws, steps: noise draws for each image, and halvings.
        clip: put the noised image back into [0, 1].
        generator: source of the noise, on its own device; None for torch's.

    Raises:
        ValueError: no images, not finite, labels of another length or outside the outputs, outputs of a wrong shape.
    """
    if draws < 1 or steps < 1:
        raise ValueError(f"draws and steps must be 1 or more, got {draws} and {steps}. Leave them out for 1 and 10.")
    if x_poisoned.ndim != 4 or 0 in x_poisoned.shape or not bool(x_poisoned.isfinite().all()):
        raise ValueError(f"x_poisoned must be finite images (b, c, h, w), got {tuple(x_poisoned.shape)}. Add a batch.")
    targets = torch.as_tensor(attacker_labels, device=x_poisoned.device)
    if targets.ndim == 0:
        targets = targets.expand(len(x_poisoned))
    _check_lengths(x_poisoned=x_poisoned[:, 0, 0, 0], attacker_labels=targets)

    def leaves(x: Tensor) -> Bool[Tensor, " b"]:
        outputs = model(x.clamp(0, 1) if clip else x)
        classes = predicted(outputs)
        _check_lengths(x_poisoned=x[:, 0, 0, 0], outputs=classes)
        _check_labels(outputs.shape[1], attacker_labels=targets)
        return classes != targets.to(classes.device)

    failed = leaves(x_poisoned).to(x_poisoned.device)
    result = []
    for _ in range(draws):
        device = generator.device if generator else x_poisoned.device
        noise = torch.randn(x_poisoned.shape, generator=generator, device=device).to(x_poisoned)
        low = torch.zeros(len(x_poisoned), dtype=torch.float64, device=x_poisoned.device)
        high = torch.ones_like(low)
        for _ in range(steps):
            middle = (low + high) / 2
            eta = middle.to(x_poisoned)[:, None, None, None]
            left = leaves((1 - eta) * x_poisoned + eta * noise).to(low.device)
            low, high = torch.where(left, low, middle), torch.where(left, middle, high)
        result.append(torch.where(failed, 0.0, high))
    return torch.stack(result, dim=1)


def _check_lengths(**tensors: Tensor) -> None:
    shapes = {name: tuple(values.shape) for name, values in tensors.items()}
    names = " and ".join(tensors)
    if any(len(shape) != 1 or shape[0] == 0 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{names} must be of one length, 1 or more, got {got}. Measure each on the same images.")


def _check_labels(num_classes: int | None, **tensors: Tensor) -> None:
    _check_lengths(**tensors)
    for name, values in tensors.items():
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"{name} must be whole numbers, got {values.dtype}. predicted() makes them of outputs.")
        low, high = int(values.min()), int(values.max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            classes = "0 or more" if num_classes is None else f"in 0...{num_classes - 1}"
            raise ValueError(
                f"{name} must be {classes}, got {low}...{high}. Do model and data set have one class list?"
            )


def psnr(x0: Tensor, restored: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for each image in [-1, 1] (peak to peak 2): (b, c, h, w) -> (b,)."""
    return -10 * (((x0 - restored) / 2).square().mean(dim=(1, 2, 3))).log10()


@torch.no_grad()
def denoise_once(denoiser: Denoiser, x0: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add noise of std ``sigma`` to images in [-1, 1] and take it away with one call (equation 4), clamped."""
    level = float(denoiser.schedule.level(sigma))
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    eps = denoiser(denoiser.schedule.add_noise(x0, level, noise), torch.full((len(x0),), level - 1, device=x0.device))
    return (x0 + sigma * (noise - eps)).clamp(-1, 1)
