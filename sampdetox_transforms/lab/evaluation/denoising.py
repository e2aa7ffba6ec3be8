"""Experiment ``denoising``: PSNR of denoisers, one call each, beside non-local means that is told the noise level.

Sigma is the noise std beside images in [-1, 1]; PSNR is the mean over the images, in dB, after clamping to the range.
"""

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sampdetox_transforms.lab.data import data_path, drawn, square_image
from sampdetox_transforms.lab.evaluation.study import Cell, Document, Plan, Study, markdown, text
from sampdetox_transforms.lab.metrics import denoise_once, psnr
from sampdetox_transforms.networks.catalogue import load_denoiser

SIGMAS = (0.05, 0.1, 0.2, 0.4)

SETS = ("gtsrb32/test", "cifar10-lossless/test")

NOISY, NON_LOCAL = "noisy input", "non-local means"


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each set of images and method."""
    denoisers = {str(text(name)): name for name in plan.options["denoisers"] or (plan.weights,)}
    images = cache(lambda name: load(name, plan))
    network = cache(lambda method: load_denoiser(denoisers[method]))

    def row(name: str, method: str) -> dict[str, Any]:
        x0, found = images(name), []
        for sigma in SIGMAS:
            generator = torch.Generator().manual_seed(plan.seed)
            if method == NON_LOCAL:
                restored = non_local_means(x0, sigma, generator)
            elif method == NOISY:
                restored = (x0 + sigma * torch.randn(x0.shape, generator=generator)).clamp(-1, 1)
            else:
                restored = torch.cat([denoise_once(network(method), part, sigma, generator) for part in x0.split(128)])
            found.append(round(float(psnr(x0, restored).mean()), 2))
        return {"n": len(x0), "psnr": found}

    for name in SETS:
        for method in (*denoisers, NOISY, NON_LOCAL):
            yield Cell({"data": name, "method": method}, partial(row, name, method))


def load(name: str, plan: Plan) -> Tensor:
    """Images of a folder in [-1, 1]."""
    paths = sorted(path for path in data_path(name, plan.data).glob("*/*") if path.is_file())
    chosen = [paths[i] for i in drawn(len(paths), plan.n, plan.seed).tolist()]
    return torch.stack([square_image(Path(path)) for path in chosen]).float() / 127.5 - 1


def non_local_means(x0: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Buades et al. 2005 with scikit-image, on [0, 1], patches of 5x5 within 7 pixels, h = .6 sigma (fast mode off)."""
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise ImportError(f"non-local means are scikit-image's, got {error}. Run pip install scikit-image.") from error
    noisy = ((x0 + sigma * torch.randn(x0.shape, generator=generator)) / 2 + 0.5).double().numpy()
    std = sigma / 2
    options: dict[str, Any] = {"patch_size": 5, "patch_distance": 7, "h": 0.6 * std, "sigma": std}
    options |= {"fast_mode": False, "channel_axis": 0}
    restored = torch.stack([torch.from_numpy(denoise_nl_means(image, **options)) for image in noisy])
    return (restored.to(x0) * 2 - 1).clamp(-1, 1)


def render(document: Document) -> str:
    lines = []
    for row in document["rows"]:
        lines.append([f"{row['data']} ({row['n']})", row["method"], *(f"{psnr:.2f}" for psnr in row["psnr"])])
    return markdown(["images", "denoiser", *(f"sigma {sigma:g}" for sigma in SIGMAS)], lines)


DENOISING = Study(
    title="PSNR of denoisers in dB, one call each",
    cells=cells,
    render=render,
    n=509,
    options={"denoisers": ()},
    data=lambda plan: "test images of each set",
)
