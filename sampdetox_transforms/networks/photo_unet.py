"""The networks for photographs: a U-Net that is cheap a pixel, for images of 64 pixels and more a side."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms.networks.group_norm import GroupNorm
from sampdetox_transforms.networks.padding import pad_to_multiple
from sampdetox_transforms.networks.pickling import WeightsAsBytes

EMBEDDING = 64  # width of the layers that read the conditions, and of the layer before the image's logit


class PhotoUNet(WeightsAsBytes):
    """Blocks of pixels as planes, a U of residual blocks, and back; optionally one logit for the whole image.

    Args:
        planes_in, planes_out: of the image that it takes and of the one that it gives; both have the same size.
        unshuffle: side of the blocks of pixels that the first layer takes at once: 4 makes 16 planes of each.
        widths: channels at 1/unshuffle of the resolution, at half of that, and so on.
        down, up: residual blocks at each of these resolutions, on the way down, and up again without the lowest.
        conditions: how many numbers of each image scale and shift every block, such as a noise level; 0 for none.
        image_logit: whether it says one number of each image as well.
    """

    def __init__(
        self,
        planes_in: int,
        planes_out: int,
        *,
        unshuffle: int = 4,
        widths: Sequence[int] = (64, 96, 128, 128),
        down: Sequence[int] = (2, 2, 2, 2),
        up: Sequence[int] = (1, 1, 1),
        conditions: int = 0,
        image_logit: bool = False,
    ):
        super().__init__()
        if len(down) != len(widths) or len(up) != len(widths) - 1:
            raise ValueError(
                "down must be as long as widths and up one shorter, "
                f"got {len(widths)} widths, {len(down)} down and {len(up)} up. Give a number of blocks for each."
            )
        self.planes_in, self.unshuffle, self.widths, self.conditions = planes_in, unshuffle, tuple(widths), conditions

        def blocks(width: int, number: int) -> nn.ModuleList:
            return nn.ModuleList([Block(width) for _ in range(number)])

        rising = tuple(reversed(self.widths[:-1]))
        self.stem = nn.Conv2d(planes_in * unshuffle**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList([blocks(w, n) for w, n in zip(widths, down, strict=True)])
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths)])
        self.grow = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in pairwise(widths)])
        self.up = nn.ModuleList([blocks(w, n) for w, n in zip(rising, up, strict=True)])
        self.head = nn.Conv2d(widths[0], planes_out * unshuffle**2, 3, padding=1)
        self.image_logit = None
        if image_logit:
            self.image_logit = nn.Sequential(nn.Linear(2 * sum(widths), EMBEDDING), nn.ReLU(), nn.Linear(EMBEDDING, 1))
        self.embed = None
        if conditions:
            layers = [nn.Linear(conditions, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU()]
            self.embed = nn.Sequential(*layers)
            every = [w for w, n in [*zip(widths, down, strict=True), *zip(rising, up, strict=True)] for _ in range(n)]
            self.scales = nn.ModuleList([nn.Linear(EMBEDDING, 2 * w) for w in every])

    @property
    def size_multiple(self) -> int:
        """Height and width that the layers take are multiples of this number; other images are padded to it."""
        return self.unshuffle * 2 ** (len(self.widths) - 1)

    def forward(
        self, x: Float[Tensor, "..."], conditions: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b q h w"] | tuple[Float[Tensor, "b q h w"], Float[Tensor, " b"]]:
        """Planes of the size of ``x`` (b, p, h, w), in its dtype, and where the network has it the logit of each image.

        Images are mirrored at their borders up to ``size_multiple`` and the result is cropped to their size.

        Raises:
            ValueError: another number of planes or of conditions than the network has.
        """
        self._check(x, conditions)
        padded, (rows, columns) = pad_to_multiple(x, self.size_multiple)
        planes, logit = self._layers(padded, conditions)
        planes = planes[..., rows, columns].to(x.dtype)
        return planes if logit is None else (planes, logit.to(x.dtype))

    def _layers(self, x: Tensor, conditions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scales = self._scales(conditions)
        h = self.stem(functional.pixel_unshuffle(x, self.unshuffle).to(self.stem.weight.dtype))
        skips, pooled = [], []
        for i, level in enumerate(self.down):
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, next(scales, None))
            pooled += [h.mean(dim=(2, 3)), h.amax(dim=(2, 3))] if self.image_logit is not None else []
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        for grow, level in zip(reversed(self.grow), self.up, strict=True):
            h = functional.interpolate(grow(h), scale_factor=2.0) + skips.pop()
            for block in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, next(scales, None))
        planes = functional.pixel_shuffle(self.head(h), self.unshuffle)
        return planes, None if self.image_logit is None else self.image_logit(torch.cat(pooled, dim=1))[:, 0]

    def _scales(self, conditions: Tensor | None) -> Iterator[Tensor]:
        """What scales and shifts each block, in the order in which they are called: (b, 2 c) each."""
        if self.embed is None or conditions is None:
            return iter(())
        embedded = self.embed(conditions.to(self.stem.weight.dtype))
        return iter([layer(embedded) for layer in self.scales])

    def _check(self, x: Tensor, conditions: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1] != self.planes_in:
            raise ValueError(
                f"images must have the shape (b, {self.planes_in}, h, w), got {tuple(x.shape)}. "
                "Bring them to the network's number of planes."
            )
        wanted = (len(x), self.conditions) if self.conditions else None
        found = None if conditions is None else tuple(conditions.shape)
        if found != wanted:
            raise ValueError(
                f"conditions must have the shape {wanted} for this network and batch, got {found}. "
                f"Give {self.conditions or 'no'} numbers for each image."
            )


class Block(nn.Module):
    """x + conv(silu(conv(norm(x)))), what is normalised scaled and shifted where there are conditions."""

    def __init__(self, width: int, groups: int = 8):
        super().__init__()
        self.norm = GroupNorm(groups, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], scale: Float[Tensor, "b d"] | None = None) -> Tensor:
        h = self.norm(x)
        if scale is not None:
            gain, shift = scale[..., None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + gain)
        return x + self.second(functional.silu(self.first(h)))
