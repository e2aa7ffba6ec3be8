"""Sancdifi (May et al. 2023): diffuse the pixels that the model's answer depends on most, and keep the others."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.defenses.base import (
    Classifier,
    Defense,
    check_denoiser,
    check_fit,
    check_model,
    check_number,
    check_whole,
    crop,
)
from sampdetox_transforms.lab.defenses.inpainting import repaint
from sampdetox_transforms.method.samplers import grid as level_grid
from sampdetox_transforms.networks.denoiser import Denoiser

RULES = ("quantile", "maximum")


class Sancdifi(Defense):
    """Sancdifi: RISE saliency of the predicted class, and reverse diffusion inside the most salient pixels.

    Source: May et al., "Salient Conditional Diffusion for Defending Against Backdoor Attacks", arXiv 2301.13862, of
    which there is no public code; 2000 masks and the threshold .95 are what SampDetox (appendix A.2) reports of it;
    p and grid are RISE's (Petsiuk et al. 2018). Inside the mask the noised image is denoised, outside the known
    pixels are put back after each step (``repaint``).
    Unverified: the diffusion levels, RISE's grid and p, and what the threshold refers to, since the paper's text was
    not at hand; level 500, stride 50, DDIM and the quantile are our choice. On GTSRB's training images a white square
    was found in the mask, but at level 250 it came back as a white square; at 500 it did not.

    Args:
        model: callable from images in [0, 1] (b, c, h, w) to logits (b, k).
        denoiser: knows noise levels up to ``level``.
        masks: random masks of RISE, the same for all images of a call.
        p: share of a mask's cells that stay visible, in (0, 1).
        grid: cells along each side of a mask.
        threshold: of saliency, in (0, 1].
        rule: "quantile" takes the pixels at or above that quantile of the image's saliency, "maximum" those at or
            above that share of its maximum.
        grey: what masked pixels become, in [0, 1]; .5 is RISE's 0 for a model that centres its images.
        level: noise level on the denoiser's schedule; ``stride`` levels between two network calls.
        seed, batch_size: see ``Defense``; ``batch_size`` masked images go through the model at once. Without a seed
            the masks are drawn anew at each call.

    Raises:
        ValueError: a setting out of range, a denoiser that does not know the level; in a call also images whose
            channels are not the denoiser's.
        TypeError: a model that cannot be called, or a denoiser that is none.
    """

    title = "Sancdifi (reimplementation, schedule unverified)"
    access = "class scores"

    def __init__(
        self,
        model: Classifier,
        denoiser: Denoiser,
        *,
        masks: int = 2000,
        p: float = 0.5,
        grid: int = 8,
        threshold: float = 0.95,
        rule: str = "quantile",
        grey: float = 0.5,
        level: int = 500,
        stride: float = 50,
        seed: int | None = None,
        batch_size: int = 250,
    ):
        super().__init__(seed=seed, batch_size=batch_size)
        check_model(model)
        check_whole("masks", masks, "2000 is the paper's.")
        check_whole("grid", grid, "7 or 8 is RISE's.")
        check_whole("level", level, "500 is the default.")
        check_number("stride", stride, "50 is the default.")
        check_number("threshold", threshold, "0.95 is the paper's.", high=1)
        check_choice("rule", rule, RULES)
        if not 0 < p < 1:
            raise ValueError(f"p must be in (0, 1), got {p}. 0.5 is RISE's.")
        if not 0 <= grey <= 1:
            raise ValueError(f"grey must be in [0, 1], got {grey}. 0.5 is the middle.")
        check_denoiser(denoiser, level, f"Sancdifi from level {level}")
        self.model, self.denoiser = model, denoiser
        self.masks, self.p, self.grid, self.threshold, self.rule, self.grey = masks, p, grid, threshold, rule, grey
        self.level, self.stride = level, stride
        self.classifier_calls = masks + 1
        self.denoiser_calls = len(level_grid(level, stride)) - 1

    def purify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        check_fit(self.denoiser, images)
        mask = self.salient(images)
        levels = level_grid(self.level, self.stride)
        restored = repaint(images * 2 - 1, mask, self.denoiser, self.denoiser.schedule, levels, self.noise(images))
        return torch.where(mask, (restored + 1) / 2, images)

    def salient(self, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b 1 h w"]:
        """The pixels whose saliency reaches the threshold."""
        saliency = self.saliency(images).flatten(1)
        if self.rule == "quantile":
            bound = saliency.quantile(self.threshold, dim=1, keepdim=True)
        else:
            bound = self.threshold * saliency.amax(1, keepdim=True)
        return (saliency >= bound).view(len(images), 1, *images.shape[-2:])

    @torch.no_grad()
    def saliency(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        """RISE (Petsiuk et al. 2018, equation 6) for the predicted class: sum of score times mask, over masks * p.

        Each image goes through the model alone with its masks, so that rounding is the same in any batch.
        """
        height, width = images.shape[-2:]
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        cells = (torch.rand(self.masks, self.grid, self.grid, generator=generator) < self.p).float()
        shifts = torch.rand(self.masks, 2, generator=generator)
        result = torch.zeros(len(images), height, width, dtype=torch.float64, device=images.device)
        labels = [int(self.model(image[None]).argmax()) for image in images]
        for cell, shift in zip(cells.split(self.batch_size), shifts.split(self.batch_size), strict=True):
            visible = rise_masks(cell.to(images.device), shift.to(images.device), height, width)
            for i, image in enumerate(images):
                masked = torch.lerp(torch.full_like(image, self.grey), image, visible)
                score = self.model(masked).float().softmax(1)[:, labels[i]]
                result[i] += torch.einsum("m,mhw->hw", score.double(), visible[:, 0].double())
        return (result / (self.masks * self.p)).float()


def rise_masks(
    cells: Float[Tensor, "m s s"], shifts: Float[Tensor, "m 2"], height: int, width: int
) -> Float[Tensor, "m 1 h w"]:
    """RISE's masks: cells of 0 and 1, enlarged bilinearly by one cell more than the image, cropped at a random place.

    ``shifts`` are in [0, 1), a share of a cell down and right. Borders repeat the outermost cell.
    """
    side = cells.shape[-1]
    cell = torch.tensor([-(-height // side), -(-width // side)], device=cells.device)
    size = ((side + 1) * int(cell[0]), (side + 1) * int(cell[1]))
    large = functional.interpolate(cells[:, None], size=size, mode="bilinear", align_corners=False)
    place: Int[Tensor, "m 2"] = (shifts * cell).long()
    return crop(large, place[:, 0], place[:, 1], height, width)
