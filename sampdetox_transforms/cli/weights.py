"""``sampdetox weights``: list, fetch or verify weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.shared import listen, say, say_facts, say_json

if TYPE_CHECKING:
    from sampdetox_transforms.networks.catalogue import DetoxWeights
    from sampdetox_transforms.networks.hub import HubRepo

app = typer.Typer(help="List, fetch or verify weights.", rich_markup_mode=None, context_settings=flags.NAMES)


@app.command("list", cls=flags.Command)
def list_weights(as_json: flags.Json = False, verbose: flags.Verbose = 0, quiet: flags.Quiet = False) -> int:
    """Print the named weights."""
    listen(verbose, quiet)
    from sampdetox_transforms.networks.catalogue import DetoxWeights

    if as_json:
        say_json({"weights": [as_document(member) for member in DetoxWeights]})
        return 0
    rows: list[tuple[str, ...]] = [("name", "repository", "revision", "licence", "MB", "here", "description")]
    for member in DetoxWeights:
        meta = member.meta
        name = member.name.lower() + (" (default)" if member is DetoxWeights.DEFAULT else "")
        origin = (meta.repo, meta.revision[:12], meta.licence) if meta.repo else ("-", "-", meta.licence)
        rows.append((name, *origin, f"{meta.size_mb:g}", where_is(member), meta.description))
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip())
    return 0


@app.command("fetch", cls=flags.Command)
def fetch_weights(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_REPO",
            help="A name, or user/repo[@revision] on the Hub; they go into the Hub's cache (HF_HOME moves it), "
            "HF_TOKEN is honoured.",
        ),
    ],
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Download weights, check a pinned hash, and print their folder."""
    listen(verbose, quiet)
    from sampdetox_transforms.networks.catalogue import parse_weights

    parsed = parse_weights(weights)
    if isinstance(parsed, Path):
        raise ValueError(f"fetch takes a name or user/repo[@revision], got the folder {parsed}. It is here already.")
    folder = folder_of(parsed)
    check_hash(parsed, folder)
    say(str(folder))
    return 0


@app.command("verify", cls=flags.Command)
def verify_weights(
    weights: Annotated[
        str, typer.Argument(metavar="NAME_OR_FOLDER", help="A name, a folder, or a repository in the cache.")
    ],
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Load weights that are on this machine, check a pinned hash, and print what they are."""
    listen(verbose, quiet)
    from sampdetox_transforms.networks.catalogue import parse_weights
    from sampdetox_transforms.networks.checkpoints import read_checkpoint

    parsed = parse_weights(weights)
    folder = folder_of(parsed, local=True)
    digest, pinned = check_hash(parsed, folder)
    denoiser = read_checkpoint(folder)
    schedule, top = denoiser.schedule.name, denoiser.max_level
    sigma = float(denoiser.schedule.sigma(top))
    if as_json:
        facts: dict[str, Any] = {"folder": folder, "sha256": digest, "pinned": pinned, "max_level": top}
        say_json({**facts, "schedule": schedule, "highest_sigma": sigma, "channels": denoiser.channels})
        return 0
    say_facts(
        {
            "folder": folder,
            "sha256": f"{digest} ({'as pinned' if pinned else 'nothing is pinned for these weights'})",
            "levels": f"1 to {top} of the {schedule} schedule, sigma up to {sigma:.3g} "
            f"({sigma * 127.5:.1f} grey levels)",
            "channels": denoiser.channels,
        }
    )
    return 0


def as_document(member: "DetoxWeights") -> dict[str, Any]:
    """All that is known of named weights."""
    from sampdetox_transforms.networks.catalogue import DetoxWeights

    about = {"name": member.name.lower(), "default": member is DetoxWeights.DEFAULT, **vars(member.meta)}
    return {**about, "here": where_is(member)}


def folder_of(weights: "DetoxWeights | HubRepo | Path", *, local: bool = False) -> Path:
    """The folder of what ``parse_weights`` returned, downloaded unless ``local``: then DownloadError if not here."""
    from sampdetox_transforms.networks import catalogue, hub

    if isinstance(weights, Path):
        return weights
    if isinstance(weights, catalogue.DetoxWeights):
        if not weights.meta.repo:
            return catalogue.BUNDLED_FOLDER
        weights = hub.HubRepo(weights.meta.repo, weights.meta.revision)
    return hub.fetch(weights, local_files_only=local)


def where_is(weights: "DetoxWeights") -> str:
    """Whether named weights are on this machine, in a word or two."""
    from sampdetox_transforms.networks.hub import DownloadError

    if not weights.meta.repo:
        return "in package"
    try:
        folder_of(weights, local=True)
    except DownloadError:
        return "not yet"
    return "cached"


def check_hash(weights: "DetoxWeights | HubRepo | Path", folder: Path) -> tuple[str, bool]:
    """The sha256 of the weights file, and whether files are pinned; WeightsFileError where one of them differs."""
    import hashlib

    from sampdetox_transforms.networks.catalogue import DetoxWeights
    from sampdetox_transforms.networks.checkpoints import PICKLED, SAFETENSORS, WeightsFileError, verify_sha256

    places = [base / name for base in (folder, folder / "unet") for name in (SAFETENSORS, PICKLED)]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise WeightsFileError(f"a checkpoint folder must hold {SAFETENSORS}, got none in {folder}. Fetch it anew.")
    pinned = weights.meta.sha256 if isinstance(weights, DetoxWeights) else {}
    for name, sha256 in pinned.items():
        verify_sha256(path.with_name(name), sha256)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), bool(pinned)
