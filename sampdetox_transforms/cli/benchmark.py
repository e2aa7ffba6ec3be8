"""``sampdetox benchmark``: how fast purification is, and what takes the time."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.shared import check_at_least, check_json, choose_device, given, listen, read_dtype

NOTES = "Run it on a machine that does nothing else: all numbers are medians of wall-clock times."


def benchmark(
    weights: flags.BundledWeights = "bundled",
    restorer: flags.Restorer = None,
    calibration: flags.Calibration = None,
    preset: Annotated[
        str,
        typer.Option(metavar="NAME", autocompletion=flags.complete_preset, help="Settings to measure, as for purify."),
    ] = "restore",
    batch_sizes: Annotated[str, typer.Option(metavar="N,N,...", help="Images at once, each 1 or more.")] = "1,8,64",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="JSON",
            show_default="print only",
            help="File for the numbers; the table goes beside it as .md, the drawing as .png.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", show_default="drawn signs", help="Image folder to take images from."),
    ] = None,
    size: Annotated[
        int, typer.Option(metavar="N", help="Height and width that images are resized to, in pixels.")
    ] = 32,
    repeats: Annotated[int, typer.Option(metavar="N", help="Runs of each measurement, 1 or more.")] = 5,
    classifier: Annotated[
        str, typer.Option(metavar="NAME", help="Classifier to compare with, at batch size 64.")
    ] = "preact-resnet18",
    naive_images: Annotated[int, typer.Option(metavar="N", help="Images for the authors' loop; 0 leaves it out.")] = 1,
    naive_every: Annotated[
        int,
        typer.Option(metavar="N", help="Walk every Nth of its 240 levels and extrapolate, 1 or more; 1 walks all."),
    ] = 10,
    dtype: flags.DtypeFlag = flags.Dtype.AUTO,
    device: flags.Device = None,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Measure how fast purification is, and what takes the time."""
    listen(verbose, quiet)
    check_at_least(1, size=size)
    check_json(out)
    sizes = flags.numbers(batch_sizes, "--batch-sizes")
    doors = given(restorer=restorer, calibration=calibration)
    shown = ["benchmark", "--weights", Path(weights).name, "--preset", preset]
    shown += [part for name, path in doors.items() for part in (f"--{name}", path.name)]
    shown += ["--batch-sizes", ",".join(map(str, sizes))]
    shown += ["--data", data_name(data)] if data else []
    shown += ["--size", str(size), "--repeats", str(repeats), "--classifier", classifier]
    shown += ["--naive-images", str(naive_images), "--naive-every", str(naive_every), "--dtype", dtype]
    about = {"command": shlex.join(["sampdetox", *shown]), "preset": preset, "data": data_name(data)}

    from sampdetox_transforms.lab.speed import benchmark as speed
    from sampdetox_transforms.lab.speed.images import benchmark_images
    from sampdetox_transforms.transforms.presets import get_preset
    from sampdetox_transforms.transforms.transform import SampDetox

    settings = {"preset": get_preset(preset), "device": choose_device(device), "dtype": read_dtype(dtype), **doors}
    images = benchmark_images(data, size, max(1, *sizes))
    result = speed.benchmark(
        SampDetox(weights, **settings),
        images.to(settings["device"]),
        batch_sizes=sizes,
        repeats=repeats,
        naive_images=naive_images,
        naive_every=naive_every,
        classifier=classifier,
        progress=lambda step: None if quiet else print(f"measuring: {step}", file=sys.stderr),
    )
    Results(about, result).publish(out, as_json=as_json)
    return 0


@dataclass(frozen=True)
class Results:
    """What was measured, and how: the command, with folders by their last names, the preset and the data."""

    about: dict[str, str]
    result: Any

    def publish(self, out: Path | None, *, as_json: bool) -> None:
        """Print the table, or the JSON; write JSON, Markdown and a drawing where a file is named."""
        import json

        from sampdetox_transforms._common import write_atomically
        from sampdetox_transforms.lab.drawing.plots import draw_speed
        from sampdetox_transforms.lab.speed.table import about, render

        document = json.dumps({"about": self.about, **about(self.result)}, indent=1)
        text, r = render(self.result), self.result
        print(document if as_json else text)
        if out is None:
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, lambda path: path.write_text(document + "\n"))
        caption = f"`{self.about['command']}`"
        write_atomically(out.with_suffix(".md"), lambda path: path.write_text(f"{text}\n\n{caption}\n"))
        rates = dict(sorted((batch.batch_size, batch.images_per_second) for batch in r.batches))
        heading = ", ".join(
            (r.settings["weights"], self.about["preset"], r.settings["dtype"], r.environment["hardware"])
        )
        draw_speed(rates, r.shares, out.with_suffix(".png"), heading)


def data_name(data: str | None) -> str:
    """What images were used, by the last names of their folder."""
    return "drawn signs" if data is None else "/".join(Path(data).parts[-2:])
