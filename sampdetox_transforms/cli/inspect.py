"""``sampdetox inspect``: one picture, drawn and in numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.purify.files import MAX_PIXELS, Picture, read_picture
from sampdetox_transforms.cli.purify.rows import has_matched, has_wave, retouched_in_words
from sampdetox_transforms.cli.shared import (
    check_at_least,
    check_writable,
    listen,
    make_detox,
    say_facts,
    say_json,
    settings_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.transforms.explanation import Explanation
    from sampdetox_transforms.transforms.transform import SampDetox


def inspect(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PANEL",
            show_default="NAME-panel.png in the current folder",
            help="The drawing, .png, .pdf or .svg, or a folder for it; replaced if it exists.",
        ),
    ] = None,
    weights: flags.Weights = None,
    restorer: flags.Restorer = None,
    calibration: flags.Calibration = None,
    trigger: flags.Trigger = None,
    preset: flags.Preset = None,
    t1: flags.T1 = None,
    t2: flags.T2 = None,
    sampler: flags.Sampler = None,
    stride: flags.Stride = None,
    seed: flags.FreshSeed = None,
    dtype: flags.DtypeFlag = flags.Dtype.AUTO,
    device: flags.Device = None,
    max_pixels: flags.MaxPixels = MAX_PIXELS,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Purify one picture and draw what was done to it."""
    listen(verbose, quiet)
    check_at_least(1, max_pixels=max_pixels)
    picture = read_picture(image, max_pixels=max_pixels)
    out = place_of_panel(image, out)
    from sampdetox_transforms.lab.drawing.panel import draw_panel, explanation_row
    from sampdetox_transforms.lab.drawing.plots import check_format

    check_format(out)
    detox = make_detox(
        **{"weights": weights, "restorer": restorer, "calibration": calibration, "preset": preset, "t1": t1, "t2": t2},
        **{"sampler": sampler, "stride": stride, "seed": seed, "dtype": dtype, "device": device},
        trigger=trigger,
    )
    explained = detox.explain(picture.pixels)
    own = f"{round(level1(detox, explained), 1):g}"
    heading = f"{image.name}: weights {detox.denoiser.source}, t1 = {own}, t2 = {detox.settings.t2}"
    draw_panel([explanation_row(picture.pixels, explained, t2=detox.settings.t2)], out, heading=heading)
    found = measure(detox, picture.pixels, explained)
    if as_json:
        say_json({"picture": image, **settings_of(detox), **found, "panel": out})
    else:
        about = {"picture": describe(picture, image), **settings_of(detox)}
        say_facts({**about, **in_words(found, detox.settings.t2), "panel": str(out)})
    return 0


def place_of_panel(image: Path, out: Path | None) -> Path:
    """Where the drawing goes; ValueError where it would replace the picture, OSError where it cannot be written."""
    name = f"{image.stem}-panel.png"
    out = Path(name) if out is None else out / name if out.is_dir() else out
    if out.resolve() == image.resolve():
        raise ValueError(f"the panel must not replace the picture, got {out} for both. Give another name to -o.")
    check_writable(out.parent)
    return out


def describe(picture: Picture, path: Path) -> str:
    """Name, size and kind of a picture."""
    channels, height, width = picture.pixels.shape
    kind = "colour" if channels == 3 else "grey"
    bits = 16 if picture.pixels.is_floating_point() else 8
    return f"{path}, {width}x{height}, {kind}, {bits} bits{', alpha kept aside' if picture.alpha else ''}"


def level1(detox: "SampDetox", explained: "Explanation") -> float:
    """The level of the global stage, which photographs and images in doubt have one of their own for."""
    return float(detox.schedule.level(explained.sigma1) if explained.level1 is None else explained.level1)


def measure(detox: "SampDetox", pixels: "Tensor", explained: "Explanation") -> dict[str, Any]:
    """What the purification did, in numbers; what it did not look for is left out. Changes are in grey levels of 255.

    Sigmas are noise std beside images in [-1, 1]; shares are of the pixels.
    """
    levels, unit = explained.timestep_map, 1 if pixels.is_floating_point() else 255
    change = (explained.image.double() - pixels.double()).abs().mean().item() * 255 / unit
    searched = {}
    if explained.found is not None and detox.calibration is not None:
        rate = float(explained.found.p_value)
        flagged = rate < detox.calibration.false_alarm_rate
        searched = {
            "clean_pictures_as_suspicious": rate,
            "treated": flagged or has_wave(explained) or has_matched(explained),
            "filled": explained.found.mask.double().mean().item(),
            "retouched": retouched_in_words(explained),
        }
        if not flagged and explained.lightened is not None:  # a flagged picture is answered otherwise
            searched["lightened"] = explained.lightened.double().abs().mean().item() * 255
    if explained.matched is not None:
        searched["shared_trigger_taken_out"] = bool(explained.matched)
    return {
        **searched,
        "level1": round(level1(detox, explained), 1),
        "sigma1": float(detox.schedule.sigma(level1(detox, explained))),
        "sigma2": explained.sigma2,
        "network_calls": int(explained.network_calls),
        "level_above_0": (levels > 0).double().mean().item(),
        "level_above_half_t2": (levels > detox.settings.t2 / 2).double().mean().item(),
        "mean_change": change,
    }


def in_words(found: dict[str, Any], t2: float) -> dict[str, str]:
    """The numbers of ``measure`` as lines for people."""

    def share(name: str) -> str:
        return f"{found[name] * 100:.1f} % of the pixels"

    def sigma(name: str) -> str:
        return f"{found[name]:.4f} ({found[name] * 127.5:.1f} grey levels of 255)"

    searched = {}
    if "treated" in found:
        treated = "treated" if found["treated"] else "not flagged"
        rate = found["clean_pictures_as_suspicious"]
        searched["suspicion"] = f"{rate:.2%} of clean pictures look at least as suspicious: {treated}"
        searched["filled"] = share("filled")
        searched["retouched"] = found["retouched"] or "nothing"
        if "lightened" in found:
            searched["lightened"] = f"by {found['lightened']:.1f} grey levels of 255 before the light stage, as a mean"
    if "shared_trigger_taken_out" in found:
        searched["shared trigger"] = "recognised, and taken out first" if found["shared_trigger_taken_out"] else "no"
    return {
        **searched,
        "sigma1": f"{sigma('sigma1')}, whole picture, level {found['level1']:g}",
        "sigma2": f"{sigma('sigma2')}, where the level is t2",
        "network calls": str(found["network_calls"]),
        "level > 0": share("level_above_0"),
        f"level > {t2 / 2:g}": share("level_above_half_t2"),
        "mean change": f"{found['mean_change']:.2f} grey levels of 255",
    }
