"""Tables as named experiments: the paper's and others, and which defenses they compare on any victims.

``sampdetox evaluate --experiment NAME`` runs one; ``render`` makes the Markdown of its JSON file.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.data import data_path
from sampdetox_transforms.lab.defenses import Bdmae, Blur, LiteBd, Noising, Sancdifi, ShrinkPad, Zip, load_carn_m
from sampdetox_transforms.lab.defenses.carn import CARN_M
from sampdetox_transforms.lab.evaluation.paper_results import (
    TABLE_1,
    TABLE_2,
    TABLE_4_GTSRB,
    TABLE_5_TINY,
    TABLE_6_VGG19,
    TABLE_7_RESNET34,
    TABLE_8,
    TABLE_9,
    TABLE_10,
    TABLE_11_TEXTURES,
    TABLE_12,
    TABLE_14,
    TABLE_15_GTSRB,
    Cell,
)
from sampdetox_transforms.lab.evaluation.retouch import retouching
from sampdetox_transforms.lab.evaluation.rows import NO_DEFENSE, Column, Row
from sampdetox_transforms.lab.evaluation.tools import Experiment, Tools, source_of
from sampdetox_transforms.networks.denoiser import Denoiser, adapt
from sampdetox_transforms.transforms.presets import PRESETS

LOG = logging.getLogger(__name__)

FAINT = ("blended", "low-frequency", "wanet", "stega", "bpp")  # the paper's groups in Table 3

VISIBLE = ("badnets", "sig", "label-consistent", "trojannn", "input-aware")

ROBUSTNESS = "robustness"  # Figure 2, which has no defenses

STRIDES = (20, 40, 60, 120)

T1 = (5, 10, 15, 20, 25, 30, 35, 40)

T2 = (40, 60, 80, 100, 120, 150, 200, 250)


class NoEstimate(nn.Module):
    """A denoiser that takes all of its input for image: behind it noise stays in, as in the paper's "Noise*"."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x_t)


def comparison(tools: Tools) -> list[Column]:
    """Tables 1, 4 and 5, and Lite-BD's first stage, which is left out with a warning where its weights are not there.

    Raises:
        WeightsFileError: other weights for Lite-BD than the pinned ones.
    """
    columns = [NO_DEFENSE, tools.sampdetox("sampdetox", PRESETS["ddim"])]
    columns.append(tools.sampdetox("sampdetox-restore", PRESETS["restore"]))
    columns.append(tools.sampdetox("sampdetox-paper", PRESETS["paper"], n=tools.n_slow))
    columns.append(tools.sampdetox("sampdetox-paper-linear", PRESETS["paper-linear"], n=tools.n_slow))
    columns.append(_bdmae(tools))
    columns += _lite_bd(tools)
    if tools.full_range is not None:
        columns += [_zip(tools, tools.full_range), _sancdifi(tools, tools.full_range)]
    return columns


def ablation(tools: Tools) -> list[Column]:
    """Table 2: noise that nothing takes away, the global stage alone, both stages."""
    unaided = adapt(NoEstimate(), tools.denoiser.schedule)
    return [
        NO_DEFENSE,
        tools.sampdetox("noise", PRESETS["ddim"], denoiser=unaided),
        tools.sampdetox("stage1", replace(PRESETS["ddim"], t2=0)),
        tools.sampdetox("sampdetox", PRESETS["ddim"]),
    ]


def levels(tools: Tools) -> list[Column]:
    """Table 3: each level with the other fixed; above what the weights know, with the full-range denoiser."""
    columns = [tools.sampdetox(f"t1={t1}", replace(PRESETS["ddim"], t1=t1, t2=0)) for t1 in T1]
    for t2 in T2:
        known = t2 <= tools.denoiser.max_level
        if known or tools.full_range is not None:
            denoiser = tools.denoiser if known else tools.full_range
            columns.append(tools.sampdetox(f"t2={t2}", replace(PRESETS["ddim"], t2=t2), denoiser=denoiser))
    return columns


def transformations(tools: Tools) -> list[Column]:
    """Table 8: transformations without a network."""
    return [NO_DEFENSE, *_transformations(tools), tools.sampdetox("sampdetox", PRESETS["ddim"])]


def textures(tools: Tools) -> list[Column]:
    """Table 11: purifiers and transformations, on images that are all detail."""
    return [*comparison(tools), *_transformations(tools)]


def denoisers(tools: Tools) -> list[Column]:
    """Tables 9 and 10: Algorithm 1 with other weights, each called by its folder's name.

    Raises:
        ValueError: no other weights.
    """
    if not tools.others:
        raise ValueError(
            "denoisers must be given to be compared, got none. Train them with 'sampdetox train --only-denoiser', and "
            "name their folders with --denoisers."
        )
    made = [tools.sampdetox(name, PRESETS["ddim"], denoiser=weights) for name, weights in tools.others.items()]
    return [NO_DEFENSE, *made]


def samplers(tools: Tools) -> list[Column]:
    """Table 12: the same levels and map with DDPM, on every level, and with DDIM."""
    ddpm = replace(PRESETS["ddim"], sampler="ddpm", stride=1)
    return [
        tools.sampdetox("ddpm", ddpm, n=tools.n_slow),
        tools.sampdetox("ddim", PRESETS["ddim"], n=tools.n_slow),
    ]


def strides(tools: Tools) -> list[Column]:
    """Fewer network calls: longer steps of the same DDIM, 7, 4, 3 and 2 calls."""
    return [tools.sampdetox(f"stride={s}", replace(PRESETS["ddim"], stride=s)) for s in STRIDES]


def precision(tools: Tools) -> list[Column]:
    """What bfloat16 costs: the same images and noise, computed in both, from weights that are in float32.

    Raises:
        ValueError: weights in another dtype, which are rounded already.
    """
    if tools.denoiser.dtype != torch.float32:
        raise ValueError(
            f"weights for experiment 'precision' must be in float32, got {tools.denoiser.dtype}. Use --dtype float32."
        )
    return [
        tools.sampdetox(f"{preset}, {str(dtype).removeprefix('torch.')}", PRESETS[preset], dtype=dtype)
        for preset in ("ddim", "restore")
        for dtype in (torch.float32, torch.bfloat16)
    ]


def without_and_with(tools: Tools) -> list[Column]:
    """Tables 6, 7, 14 and 15: no defense, Algorithm 1, and the search."""
    return [
        NO_DEFENSE,
        tools.sampdetox("sampdetox", PRESETS["ddim"]),
        tools.sampdetox("sampdetox-restore", PRESETS["restore"]),
    ]


def _transformations(tools: Tools) -> list[Column]:
    return [
        tools.baseline("noising", lambda model, **given: Noising(**given), sigma=0.1),
        tools.baseline("shrink-pad", lambda model, **given: ShrinkPad(**given), pad=4),
        tools.baseline("blur", lambda model, *, seed, **given: Blur(**given), kernel=5, sigma=1.0),
    ]


def _bdmae(tools: Tools) -> Column:
    column = tools.baseline("bdmae", lambda model, **given: Bdmae(model, tools.denoiser, **given), n=tools.n_slow)
    return replace(column, access=Bdmae.access, settings={"inpainter": source_of(tools.denoiser)})


def _lite_bd(tools: Tools) -> list[Column]:
    try:
        path = data_path(CARN_M)
    except FileNotFoundError as error:
        LOG.warning("lite-bd is left out: %s", error)
        return []
    network = load_carn_m(path)
    column = tools.baseline("lite-bd", lambda model, *, seed: LiteBd(network))
    return [replace(column, settings={"defense": LiteBd.title, "weights": path.name})]


def _zip(tools: Tools, denoiser: Denoiser) -> Column:
    column = tools.baseline("zip", lambda model, **given: Zip(denoiser, **given), degradations=("pool",))
    return replace(column, settings={**column.settings, "weights": source_of(denoiser)})


def _sancdifi(tools: Tools, denoiser: Denoiser) -> Column:
    column = tools.baseline("sancdifi", lambda model, **given: Sancdifi(model, denoiser, **given), n=tools.n_slow)
    return replace(column, access=Sancdifi.access, settings={"weights": source_of(denoiser)})


def _in(table: Mapping[tuple[str, str], Cell]) -> Callable[[Row], Cell | None]:
    return lambda row: table.get((row.attack, row.defense))


def _adaptive(row: Row) -> Cell | None:
    return TABLE_14.get((row.attack, row.robust_noise, row.defense))


def _by_classifier(row: Row) -> Cell | None:
    tables = {"vgg19": TABLE_6_VGG19, "resnet34": TABLE_7_RESNET34}
    table = tables.get(row.classifier.removesuffix("-narrow"), {})
    return table.get((row.attack, "gtsrb")) if row.defense == "sampdetox" else None


# Tables of victims behind defenses; a new one is a line here. Experiments of other kinds are in ``run.STUDIES``.
EXPERIMENTS = {
    "comparison": Experiment("Table 4 (GTSRB): comparison of defenses", comparison, _in(TABLE_4_GTSRB)),
    "cifar10": Experiment("Table 1 (CIFAR-10): comparison of defenses", comparison, _in(TABLE_1)),
    "tiny-imagenet": Experiment("Table 5 (Tiny-ImageNet): comparison of defenses", comparison, _in(TABLE_5_TINY)),
    "textures": Experiment(
        "Table 11 (DTD): images that are all detail", textures, _in(TABLE_11_TEXTURES), ("badnets", "wanet")
    ),
    "classifiers": Experiment("Tables 6 and 7 (GTSRB): other classifiers", without_and_with, _by_classifier),
    "denoisers": Experiment("Table 9: denoisers trained on other images", denoisers, _in(TABLE_9)),
    "faces": Experiment("Table 10: the same on faces", denoisers, _in(TABLE_10), ("badnets", "wanet")),
    "ablation": Experiment("Table 2: noise alone, stage 1 alone, both stages", ablation, _in(TABLE_2)),
    "levels": Experiment("Table 3: noise levels", levels),
    "transformations": Experiment("Table 8: transformations", transformations, _in(TABLE_8)),
    "samplers": Experiment("Table 12: DDPM and DDIM", samplers, _in(TABLE_12)),
    "strides": Experiment("Fewer network calls: DDIM with longer steps", strides),
    "precision": Experiment("bfloat16 beside float32", precision),
    "adaptive": Experiment(
        "Table 14: attacks that train with noise", without_and_with, _adaptive, ("wanet", "badnets")
    ),
    "semantic": Experiment(
        "Table 15: semantic attacks", without_and_with, _in(TABLE_15_GTSRB), ("refool", "color-style", "composite")
    ),
    "retouching": Experiment("Retouching: each part alone and behind the default", retouching),
}


def get_experiment(name: str) -> Experiment:
    """Look an experiment up by its name.

    Raises:
        ValueError: an unknown name; the nearest ones are suggested.
    """
    check_choice("experiment", name, tuple(EXPERIMENTS))
    return EXPERIMENTS[name]
