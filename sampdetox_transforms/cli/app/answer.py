"""What the app does with a picture: plant a trigger in it if asked to, purify it, and say what was found."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampdetox_transforms.cli.inspect import level1
from sampdetox_transforms.cli.purify.files import MAX_PIXELS, Picture, PictureError, read_picture, write_picture
from sampdetox_transforms.cli.purify.rows import has_wave, retouched_in_words
from sampdetox_transforms.cli.purify.thumbnails import MARK, as_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.transforms.explanation import Explanation
    from sampdetox_transforms.transforms.transform import SampDetox

LEAST = 16  # pixels of the shorter side of a picture that a trigger fits in


@dataclass(frozen=True)
class Answer:
    """A purified picture.

    Attributes:
        before, after: PNG files, the picture as it was purified and the result.
        mask: a PNG file of the same size, coloured where something was filled and clear elsewhere.
        facts: what was found, by name, for people; ``numbers`` the same for programs.
        verdict: the same in one sentence.
        warning: why the thresholds may not suit the picture; empty where they do.
    """

    before: bytes
    after: bytes
    mask: bytes
    verdict: str
    facts: dict[str, str]
    numbers: dict[str, Any]
    warning: str


def clean(
    content: bytes, detox: "SampDetox", *, trigger: str = "none", seed: int = 0, max_pixels: int = MAX_PIXELS
) -> Answer:
    """Purify a picture file, after planting a trigger by its name.

    Raises:
        ValueError: no picture, a damaged or too large one, an unknown trigger; the message says what to do.
    """
    from sampdetox_transforms.transforms.images import to_core
    from sampdetox_transforms.transforms.watch import unlike_photographs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            picture = read_picture(path, max_pixels=max_pixels)
        except PictureError as error:
            raise ValueError(f"This file cannot be read: {error.reason}") from error
        pixels = picture.pixels if trigger == "none" else planted(picture.pixels, trigger, seed)
        begin = time.perf_counter()
        explained = detox.explain(pixels)
        seconds = time.perf_counter() - begin
        before, after = (png(path, picture, image) for image in (pixels, explained.image))
    numbers = numbers_of(explained, detox, seconds)
    unlike = unlike_photographs(to_core(pixels, None, detox.denoiser.channels))
    warning = ""
    if unlike.count and detox.watch.looks_far:
        warning = (
            "This picture is unlike the photographs and traffic signs that the thresholds come from: "
            f"{unlike.words}. What is found may be no trigger. Set your own with 'sampdetox calibrate'."
        )
    return Answer(before, after, mask_png(explained), verdict(numbers), facts(numbers), numbers, warning)


def planted(pixels: "Tensor", trigger: str, seed: int) -> "Tensor":
    """The picture, (1 or 3, h, w), in colour and with the trigger."""
    import torch

    from sampdetox_transforms._common import check_choice
    from sampdetox_transforms.lab.demo.photographs import demo_triggers

    triggers = demo_triggers()
    check_choice("trigger", trigger, tuple(triggers))
    if min(pixels.shape[-2:]) < LEAST:
        raise ValueError(
            f"Pictures must have {LEAST} pixels in height and width for a trigger, got "
            f"{pixels.shape[-1]}x{pixels.shape[-2]}. Take a larger one, or no trigger."
        )
    image = (pixels if pixels.is_floating_point() else pixels.float() / 255).expand(3, -1, -1)
    result = triggers[trigger].plant(image[None], torch.Generator().manual_seed(seed)).images[0]
    return as_bytes(result)


def numbers_of(explained: "Explanation", detox: "SampDetox", seconds: float) -> dict[str, Any]:
    """What was found, in numbers."""
    found = explained.found
    first, own = level1(detox, explained), float(explained.timestep_map.amax())
    numbers: dict[str, Any] = {
        "level": round(own or first, 1),
        "noise": round(127.5 * float(detox.schedule.sigma(max(first, own))), 1),
        "calls": int(explained.network_calls),
        "seconds": round(seconds, 2),
    }
    if found is not None:
        share = float(found.mask.double().mean())
        numbers |= {"p_value": float(found.p_value), "mask": share, "dense": bool(found.dense)}
        waves = has_wave(explained)
        numbers |= {"waves": waves, "retouched": retouched_in_words(explained)}
        numbers["found"] = bool(share > 0 or found.dense or waves)
    if explained.matched is not None:
        numbers["matched"] = bool(explained.matched)
    return numbers


def verdict(numbers: dict[str, Any]) -> str:
    """One sentence."""
    if numbers.get("matched"):
        return "The shared trigger was recognised and taken out."
    if "found" not in numbers:
        return "Purified; these settings do not search for a trigger."
    if not numbers["found"]:
        return "Nothing was found. A little noise was added and taken away again, as in every picture."
    if numbers["dense"] or not numbers["mask"]:
        return "A pattern all over the picture was found and taken out."
    return f"Something was found on {numbers['mask']:.1%} of the picture and taken out."


def facts(numbers: dict[str, Any]) -> dict[str, str]:
    """The numbers in words."""
    words = {}
    if "matched" in numbers:
        words["Shared trigger"] = "recognised, and taken out first" if numbers["matched"] else "not in this picture"
    if "p_value" in numbers:
        words["Suspicion"] = f"{numbers['p_value']:.1%} of clean pictures look at least as suspicious"
        region = f"a region, {numbers['mask']:.1%} of the picture" if numbers["mask"] else ""
        pattern = "a pattern all over it" if numbers["dense"] or numbers["waves"] else ""
        words["Found"] = ", ".join(filter(None, (region, pattern))) or "nothing"
        if numbers["retouched"]:
            words["Retouched"] = numbers["retouched"]
    words["Level"] = f"{numbers['level']:g} (noise of {numbers['noise']:g} grey levels, added and taken away again)"
    words["Network calls"] = str(numbers["calls"])
    words["Time"] = f"{numbers['seconds']:g} s"
    return words


def png(folder_file: Path, picture: Picture, pixels: "Tensor") -> bytes:
    """A PNG file of pixels, with the transparency and the colour profile of the picture."""
    target = folder_file.with_suffix(".png")
    write_picture(target, picture, pixels)
    return target.read_bytes()


def mask_png(explained: "Explanation") -> bytes:
    """A PNG file with the colour of masked pixels where something was filled, and clear elsewhere."""
    import io

    import torch
    from PIL import Image

    levels = explained.timestep_map
    mask = torch.zeros_like(levels, dtype=torch.bool) if explained.found is None else explained.found.mask
    alpha = (mask[0].cpu() * 150).to(torch.uint8).numpy()
    image = Image.new("RGB", alpha.shape[::-1], MARK)
    image.putalpha(Image.fromarray(alpha))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
