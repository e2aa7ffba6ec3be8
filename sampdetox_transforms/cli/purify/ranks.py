"""Several processes that share one task, as torchrun and other launchers start them: who this is, and what it does."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sampdetox_transforms.cli.purify.tree import Job


class Rank(NamedTuple):
    """This process among others.

    Attributes:
        index: its number, from 0 to ``world`` - 1.
        world: how many there are.
        local: its number among those on this machine.
    """

    index: int = 0
    world: int = 1
    local: int = 0


def current_rank(environ: Mapping[str, str]) -> Rank:
    """What RANK, WORLD_SIZE and, where it is set, LOCAL_RANK say; one process of one without them.

    Raises:
        ValueError: only one of the two, or numbers that do not fit.
    """
    given = {name: environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if not any(given.values()):
        return Rank()
    shown = ", ".join(f"{name}={value or 'nothing'}" for name, value in given.items())
    try:
        index, world = int(given["RANK"]), int(given["WORLD_SIZE"])
        local = int(environ.get("LOCAL_RANK") or index)
    except ValueError:
        index, world, local = -1, 0, 0
    if not (0 <= index < world and local >= 0):
        raise ValueError(
            f"RANK and WORLD_SIZE must be whole numbers, RANK in [0, WORLD_SIZE - 1], got {shown}. "
            "Let torchrun set them, or unset both for one process."
        )
    return Rank(index, world, local)


def shard(jobs: Sequence[Job], rank: Rank) -> list[Job]:
    """The part of this process: picture ``index`` of the sorted list and every ``world``-th after it.

    It must not depend on what results exist, since processes need not start at the same time.
    """
    return list(jobs[rank.index :: rank.world])


def device_of_rank(device: str, rank: Rank) -> str:
    """A card for each process on a machine, in turn, where "cuda" leaves open which; any other device as it is."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{rank.local % torch.cuda.device_count()}"


def status_of(failed: int, environ: Mapping[str, str]) -> int:
    """The exit status where so many pictures failed: 1, but 0 for torchrun.

    For any other status torchrun ends the other processes in the middle of their pictures, and prints a traceback of
    its own. That pictures failed is printed, and stands in the report.
    """
    return 1 if failed and "TORCHELASTIC_RUN_ID" not in environ else 0
