"""Images too large to go through a network at once: overlapping tiles, the results blended where they overlap.

A U-Net's memory grows with the pixels that it sees at once. Images of more than ``MAX_SIDE`` squared pixels are cut
into as few equal tiles as fit, and a batch is cut so that a call takes no more than ``AT_ONCE`` pixels. Group
normalisation looks at a whole tile, so that tiled and whole differ a little; the blending takes the seams out.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Num
from torch import Tensor

from sampdetox_transforms.networks.padding import pad_to_multiple

MAX_SIDE = 512  # pixels

AT_ONCE = 2**19  # pixels of a batch: 512 images of 32 x 32

OVERLAP = 32  # pixels

Network = Callable[[Tensor, Tensor], Tensor]


def in_parts(
    network: Network,
    x: Float[Tensor, "b c h w"],
    t: Num[Tensor, " b"],
    *,
    multiple: int = 1,
    side: int = MAX_SIDE,
    at_once: int = AT_ONCE,
    overlap: int = OVERLAP,
) -> Float[Tensor, "b c h w"]:
    """``network(x, t)``, whole images where they are small enough, else by tiles.

    Args:
        x: height and width are multiples of ``multiple``.
        side: of the largest tile, in pixels; images with at most side * side pixels go whole.
        at_once: pixels of a call; one image or tile is the least.
        overlap: pixels that neighbouring tiles share.
    """
    height, width = x.shape[-2:]
    if height * width <= side * side:
        return by_batches(network, x, t, at_once)
    rows, columns = (list(spans(length, side, overlap, multiple)) for length in (height, width))
    places = [(top, left) for top in rows for left in columns]
    tile_height, tile_width = rows[0][1] - rows[0][0], columns[0][1] - columns[0][0]
    weight = ramp(tile_height, overlap, x)[:, None] * ramp(tile_width, overlap, x)
    total, weights = torch.zeros_like(x), x.new_zeros(height, width)
    some = max(1, at_once // (len(x) * tile_height * tile_width))
    for start in range(0, len(places), some):
        chosen = places[start : start + some]
        tiles = torch.cat([x[..., top[0] : top[1], left[0] : left[1]] for top, left in chosen])
        results = by_batches(network, tiles, t.repeat(len(chosen)), at_once).split(len(x))
        for (top, left), result in zip(chosen, results, strict=True):
            here = (..., slice(*top), slice(*left))
            total[here] += result.to(x) * weight
            weights[here] += weight
    return total.div_(weights)


def of_any_size(
    network: Network, x: Float[Tensor, "b c h w"], t: Num[Tensor, " b"], multiple: int, side: int = MAX_SIDE
) -> Float[Tensor, "b c h w"]:
    """``in_parts`` of images of any size: mirrored at their borders up to ``multiple``, and cropped again."""
    padded, (rows, columns) = pad_to_multiple(x, multiple)
    return in_parts(network, padded, t, multiple=multiple, side=side)[..., rows, columns]


def by_batches(network: Network, x: Tensor, t: Tensor, at_once: int) -> Tensor:
    """``network(x, t)``, no more than ``at_once`` pixels at a time."""
    some = max(1, at_once // max(1, x.shape[-2] * x.shape[-1]))
    if len(x) <= some:
        return network(x, t)
    return torch.cat([network(a, b) for a, b in zip(x.split(some), t.split(some), strict=True)])


def spans(length: int, side: int, overlap: int, multiple: int) -> Iterator[tuple[int, int]]:
    """As few equal pieces of at most ``side`` as cover 0...length with ``overlap`` or more in common: (from, to).

    They start at multiples, as the whole image does: a network that looks at blocks of pixels sees the same blocks.
    """
    side = max(side // multiple * multiple, multiple)
    if length <= side:
        yield 0, length
        return
    overlap = min(overlap, side - 1)
    number = math.ceil((length - overlap) / (side - overlap))
    piece = min(side, math.ceil((length + (number - 1) * overlap) / number / multiple) * multiple)
    for i in range(number):
        start = i * (length - piece) // (number - 1) // multiple * multiple
        yield start, start + piece


def ramp(length: int, overlap: int, like: Tensor) -> Float[Tensor, " n"]:
    """The weight of a tile's pixels along one side: 1 inside, towards both ends down to almost nothing."""
    position = torch.arange(length, device=like.device, dtype=like.dtype)
    inside = torch.minimum(position, length - 1 - position) + 1
    return (inside / (overlap + 1)).clamp(max=1)
