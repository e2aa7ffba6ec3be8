"""BDMAE (Sun et al. 2023): find the trigger by masking tokens at random, and restore the tokens that it is in."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.defenses.base import Classifier, Defense, check_model, check_number, check_whole, uniform
from sampdetox_transforms.lab.defenses.inpainting import DiffusionInpainter
from sampdetox_transforms.method.maps import ssim_map
from sampdetox_transforms.networks.denoiser import Denoiser

Inpainter = Callable[[Tensor, Tensor], Tensor]  # images (b, c, h, w), mask (b, 1, h, w) -> restored images


class Bdmae(Defense):
    """BDMAE with any inpainter, for a model of which labels are known only.

    A score for each token of a grid, on the mean of an image-based score (how much the restored token differs, 1 -
    SSIM) and a label-based one (how often the label changes when it is masked), both refined by masking a connected
    half of the highest tokens; then the tokens above five thresholds are restored, and the restorations averaged.

    Source: Sun et al., "Mask and Restore: Blind Backdoor Defense at Test Time with Masked Autoencoder", arXiv
    2303.15564, and their code, whose settings are the defaults.
    Departures: the code takes the lengths of masks from batch averages, here each image has its own; a growing mask
    begins among the highest tokens, in the code anywhere; SSIM's borders are mirrored, there zero; five predictions
    that the code discards are left out. A token is a block of pixels (2 or 3 a side at 32 pixels, as in the code,
    where the image is resized to 224 and the mask back).
    Unverified: results with another inpainter than the authors' masked autoencoder (ViT, pre-trained on ImageNet).

    Args:
        model: callable from images in [0, 1] (b, c, h, w) to logits (b, k).
        inpainter: callable (images, mask) -> images, restored where the (b, 1, h, w) boolean mask is true; a masked
            autoencoder, or a ``Denoiser``, which stands for ``DiffusionInpainter(denoiser, seed=seed)``.
        grid: tokens along each side of the image.
        outer, inner: random masks are drawn in ``outer`` groups of ``inner``.
        mask_ratio: share of tokens that a random mask hides.
        rounds: of refinement; ``bonus`` for neighbours of the growing mask, ``rate`` by which scores change.
        alpha: weight of the image-based score.
        thresholds: for scores, falling.
        max_masked: thresholds are raised until less than this share of tokens is restored.
        seed, batch_size: see ``Defense``; ``batch_size`` images go through the networks at once.

    Raises:
        ValueError: a setting out of range; in a call also images smaller than the grid, or that the inpainter
            returned in another shape.
        TypeError: a model or an inpainter that cannot be called.
    """

    title = "BDMAE (reimplementation)"
    access = "hard labels"

    def __init__(
        self,
        model: Classifier,
        inpainter: Inpainter | Denoiser,
        *,
        grid: int = 14,
        outer: int = 5,
        inner: int = 5,
        mask_ratio: float = 0.75,
        rounds: int = 10,
        bonus: float = 0.5,
        rate: float = 0.05,
        alpha: float = 0.5,
        thresholds: tuple[float, ...] = (0.6, 0.55, 0.5, 0.45, 0.4),
        max_masked: float = 0.25,
        seed: int | None = None,
        batch_size: int = 64,
    ):
        super().__init__(seed=seed, batch_size=batch_size)
        check_model(model)
        if isinstance(inpainter, Denoiser):
            inpainter = DiffusionInpainter(inpainter, seed=seed, batch_size=batch_size)
        if not callable(inpainter):
            raise TypeError(
                f"inpainter must be callable on (images, mask), got {type(inpainter).__name__}. "
                "Pass a masked autoencoder or a denoiser."
            )
        check_whole("grid", grid, "14 is the authors'.", low=2)
        check_whole("outer", outer, "5 is the authors'.")
        check_whole("inner", inner, "5 is the authors'.")
        check_whole("rounds", rounds, "10 is the authors'.", low=0)
        check_number("mask_ratio", mask_ratio, "0.75 is the authors'.", high=1)
        if int(grid**2 * mask_ratio) < 1:
            raise ValueError(f"mask_ratio must hide a token at least, got {mask_ratio} of {grid**2}. Raise it.")
        check_number("rate", rate, "0.05 is the authors'.")
        check_number("max_masked", max_masked, "0.25 is the authors'.", high=1)
        if not bonus >= 0:
            raise ValueError(f"bonus must be 0 or more, got {bonus}. 0.5 is the authors'.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}. 0.5 is the authors'.")
        if not thresholds or list(thresholds) != sorted(thresholds, reverse=True) or not 0 < min(thresholds) < 1:
            raise ValueError(f"thresholds must fall, with the last in (0, 1), got {thresholds}. Sort them.")
        self.model, self.inpainter = model, inpainter
        self.grid, self.outer, self.inner, self.mask_ratio = grid, outer, inner, mask_ratio
        self.rounds, self.bonus, self.rate, self.alpha = rounds, bonus, rate, alpha
        self.thresholds, self.max_masked = tuple(thresholds), max_masked
        masks = outer * inner + 2 * rounds
        self.classifier_calls = 1 + masks
        self.denoiser_calls = getattr(inpainter, "denoiser_calls", 0) * (masks + len(thresholds))

    def purify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if min(images.shape[-2:]) < self.grid:
            raise ValueError(
                f"images must have {self.grid} pixels a side at least, one for each token, got "
                f"{tuple(images.shape[-2:])}. Lower grid."
            )
        labels = self.model(images).argmax(1)
        scores = self._refine(images, labels, self._scores(images, labels))
        scores = self.alpha * scores[:, 0] + (1 - self.alpha) * scores[:, 1]
        return self._restore(images, scores)

    def _scores(self, images: Tensor, labels: Tensor) -> Float[Tensor, "b 2 n"]:
        """Image-based and label-based scores of the tokens, from random masks that all images share."""
        tokens, b = self.grid**2, len(images)
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        masks = random_masks(self.outer, self.inner, tokens, self.mask_ratio, generator).to(images.device)
        total, count = torch.zeros_like(images), torch.zeros_like(images[:1, :1])
        image_scores, label_scores = images.new_zeros(b, tokens), images.new_zeros(b, tokens)
        for group in masks:
            repeated = images.repeat_interleave(self.inner, dim=0)
            answers, pixels, restored = self._answer(repeated, group.repeat(b, 1))
            changed = answers.view(b, -1) != labels[:, None]
            label_scores = label_scores + changed.to(images) @ group.to(images)
            hidden = pixels.view(b, self.inner, *pixels.shape[1:])
            # the code never empties its lists: each group's average is that of all groups so far
            total = total + (hidden * restored.view(b, self.inner, *restored.shape[1:])).sum(1)
            count = count + hidden[:1].sum(1)
            average = torch.where(count > 0, total / count.clamp(min=1), images)
            similarity = ssim_map(images * 2 - 1, average * 2 - 1, window="gaussian", sample_covariance=False)
            sampled = functional.interpolate(similarity, size=(self.grid, self.grid), mode="nearest")
            image_scores = image_scores + 1 - sampled.flatten(1).to(images)
        return torch.stack([image_scores / self.outer, label_scores / (self.outer * self.inner)], dim=1)

    def _refine(self, images: Tensor, labels: Tensor, scores: Float[Tensor, "b 2 n"]) -> Float[Tensor, "b 2 n"]:
        """Move the scores of the highest tokens up or down, by what masking a connected half does to the label."""
        b, _, tokens = scores.shape
        high = torch.stack([(scores[:, 0] >= 0.2).sum(1), (scores[:, 1].double().sum(1) + 1e-6).long()], dim=1)
        size = torch.where(high > 0, (high // 2).clamp(min=1), 0).flatten()
        noise, repeated = self.noise(images), images.repeat_interleave(2, dim=0)
        for _ in range(self.rounds):
            flat = scores.flatten(0, 1)
            top = top_tokens(flat, high.flatten())
            draws = uniform(noise, images, 2, max(1, tokens // 2), tokens).flatten(0, 1)
            half = grow(flat, top, size, draws, self.bonus)
            answers, *_ = self._answer(repeated, half)
            kept = answers == labels.repeat_interleave(2)
            change = torch.where(kept, self.rate, -self.rate)[:, None] * (top.to(flat) - 2 * half.to(flat))
            scores = (flat + change).view(b, 2, tokens)
        return scores

    def _restore(self, images: Tensor, scores: Float[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        """Restore the tokens above each threshold, and average the restorations of each pixel."""
        levels = raised_thresholds(scores, self.thresholds, self.max_masked)
        masks = scores[:, None] >= levels[:, :, None]
        n = masks.shape[1]
        repeated = images.repeat_interleave(n, dim=0)
        pixels = token_mask(masks.flatten(0, 1), self.grid, images)
        restored = self._inpaint(repeated, pixels).view(-1, n, *images.shape[1:])
        hidden = pixels.view(-1, n, *pixels.shape[1:])
        average = (hidden * restored).sum(1) / hidden.sum(1).clamp(min=1)
        return torch.where(hidden.any(1), average, images)

    def _answer(self, images: Tensor, masks: Bool[Tensor, "m n"]) -> tuple[Tensor, Tensor, Tensor]:
        """The model's labels for images restored inside the masks of tokens; the masks of pixels; the restored."""
        pixels = token_mask(masks, self.grid, images)
        restored = self._inpaint(images, pixels)
        answers = [self.model(chunk).argmax(1) for chunk in restored.split(self.batch_size)]
        return torch.cat(answers), pixels, restored

    def _inpaint(self, images: Tensor, pixels: Bool[Tensor, "m 1 h w"]) -> Tensor:
        pairs = zip(images.split(self.batch_size), pixels.split(self.batch_size), strict=True)
        restored = torch.cat([self.inpainter(*pair) for pair in pairs])
        if restored.shape != images.shape:
            raise ValueError(
                f"inpainter must return images of the shape {tuple(images.shape)}, got {tuple(restored.shape)}. "
                "Resize its result to the images' size."
            )
        return torch.where(pixels, restored.to(images).clamp(0, 1), images)


def random_masks(
    outer: int, inner: int, tokens: int, ratio: float, generator: torch.Generator | None
) -> Bool[Tensor, "outer inner n"]:
    """Masks of tokens: for each group, consecutive slices of ``inner`` random orders put one behind the other.

    So a group hides each token about equally often. A slice over the end of an order may hold a token twice, and
    then hides one less.
    """
    length = int(tokens * ratio)
    orders = torch.rand(outer, inner, tokens, generator=generator).argsort(-1).flatten(1)
    slices = orders[:, : inner * length].view(outer, inner, length)
    return torch.zeros(outer, inner, tokens, dtype=torch.bool).scatter_(2, slices, True)


def token_mask(masks: Bool[Tensor, "m n"], grid: int, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "m 1 h w"]:
    """Pixels of masked tokens: pixel i of s belongs to the token floor(i grid / s), as in nearest resizing."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=masks.device) * grid // height
    columns = torch.arange(width, device=masks.device) * grid // width
    return masks.view(-1, 1, grid, grid)[:, :, rows[:, None], columns]


def top_tokens(scores: Float[Tensor, "m n"], count: Int[Tensor, " m"]) -> Bool[Tensor, "m n"]:
    """The ``count`` highest tokens of each row."""
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count[:, None]


def grow(
    scores: Float[Tensor, "m n"],
    allowed: Bool[Tensor, "m n"],
    size: Int[Tensor, " m"],
    draws: Float[Tensor, "m s n"],
    bonus: float,
) -> Bool[Tensor, "m n"]:
    """``size`` of the allowed tokens, drawn one by one: the highest draw * (score + bonus beside a chosen token).

    ``draws`` are in [0, 1), one for each step and token.
    """
    side = round(scores.shape[1] ** 0.5)
    cross = scores.new_tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]
    chosen = torch.zeros_like(allowed)
    for step in range(int(size.max())):
        beside = functional.conv2d(chosen.to(scores).view(-1, 1, side, side), cross, padding=1).flatten(1) > 0
        value = draws[:, step] * (scores + bonus * beside)
        best = value.masked_fill(chosen | ~allowed, -torch.inf).argmax(1, keepdim=True)
        chosen = chosen.scatter(1, best, chosen.gather(1, best) | (step < size)[:, None])
    return chosen


def raised_thresholds(
    scores: Float[Tensor, "b n"], thresholds: tuple[float, ...], max_masked: float, factor: float = 0.99
) -> Float[Tensor, "b k"]:
    """Multiply 1 - threshold by ``factor`` as often as needed (200 times at most) for the lowest to be rare enough."""
    gaps = 1 - scores.new_tensor(thresholds)
    factors = factor ** torch.arange(201, device=scores.device).to(scores)
    share = (scores[:, None, :] >= (1 - gaps.max() * factors)[None, :, None]).float().mean(2)
    enough = share < max_masked
    enough[:, -1] = True
    first = enough.to(torch.uint8).argmax(1)
    return 1 - gaps * factors[first][:, None]
