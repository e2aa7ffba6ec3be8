"""CARN-M (Ahn, Kang and Sohn, ECCV 2018): a small network that doubles an image's size, and its public weights."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms.networks.safe_files import check_size, require_sha256

CARN_M = "models/carn_m.pth"  # in the folder of data

CARN_M_SHA256 = "d48a759a84509351facb6b7c6d5bd6edec98b98519b8c464ee4ab44d2ba964ff"

LARGEST = 4 * 2**20  # bytes; the file has less than half

WIDTH, GROUPS, STEPS = 64, 4, 3

MEANS = (0.4488, 0.4371, 0.4040)  # of the colours of the photographs that it was trained on


class CascadingBlock(nn.Module):
    """One residual block, three times in a row with the same weights, with a fusion of all so far after each."""

    def __init__(self):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=GROUPS),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=GROUPS),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 1),
        )
        self.fusions = fusions()

    def forward(self, x: Float[Tensor, "b 64 h w"]) -> Float[Tensor, "b 64 h w"]:
        return cascade(x, [self.repeated] * STEPS, self.fusions)

    def repeated(self, x: Float[Tensor, "b 64 h w"]) -> Float[Tensor, "b 64 h w"]:
        return functional.relu(x + self.residual(x))


class CarnM(nn.Module):
    """Images (b, 3, h, w) in [0, 1] -> images (b, 3, 2h, 2w), about in [0, 1] and not clamped.

    Source: Ahn, Kang and Sohn, "Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network",
    ECCV 2018; the layers are those of the authors' weights. It learned to undo bicubic shrinking, antialiased. The
    weights are random until they are loaded (``load_carn_m``), and it is in eval mode.
    """

    means: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.tensor(MEANS)[:, None, None], persistent=False)
        self.entry = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(CascadingBlock() for _ in range(STEPS))
        self.fusions = fusions()
        self.enlarge = nn.Conv2d(WIDTH, 4 * WIDTH, 3, padding=1, groups=GROUPS)
        self.exit = nn.Conv2d(WIDTH, 3, 3, padding=1)
        self.requires_grad_(False).eval()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 2*h 2*w"]:
        x = cascade(self.entry(images - self.means), self.blocks, self.fusions)
        return self.exit(functional.pixel_shuffle(functional.relu(self.enlarge(x)), 2)) + self.means


def fusions() -> nn.ModuleList:
    """1x1 convolutions of two, three and four times the channels."""
    return nn.ModuleList(nn.Conv2d(WIDTH * (i + 2), WIDTH, 1) for i in range(STEPS))


def cascade(x: Float[Tensor, "b 64 h w"], steps: Iterable, fusions: Iterable) -> Float[Tensor, "b 64 h w"]:
    """Each step's output is put beside the input and the outputs of all steps before, and fused for the next."""
    so_far = x
    for step, fusion in zip(steps, fusions, strict=True):
        so_far = torch.cat([so_far, step(x)], dim=1)
        x = functional.relu(fusion(so_far))
    return x


def load_carn_m(path: str | Path) -> CarnM:
    """The network with the authors' weights for twice the size, in eval mode, on the CPU.

    Args:
        path: ``checkpoint/carn_m.pth`` of github.com/nmhkahn/CARN-pytorch (MIT).

    Raises:
        WeightsFileError: no file, or any but the pinned one.
    """
    path = Path(path)
    check_size(path, LARGEST)
    content = path.read_bytes()
    require_sha256(path, hashlib.sha256(content).hexdigest(), CARN_M_SHA256)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network = CarnM()
    pairs = [(ours, theirs, kind) for theirs, ours in layers().items() for kind in ("weight", "bias")]
    network.load_state_dict({f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs, kind in pairs})
    return network


def layers() -> dict[str, str]:
    """The layers of the authors' file that are used here, and their names here.

    Left out are those for three and four times the size, and the means, which are a constant above.
    """
    found = {"entry": "entry", "upsample.up2.body.0": "enlarge", "exit": "exit"}
    for i in range(STEPS):
        found[f"c{i + 1}.body.0"] = f"fusions.{i}"
        found |= {f"b{i + 1}.b1.body.{j}": f"blocks.{i}.residual.{j}" for j in (0, 2, 4)}
        found |= {f"b{i + 1}.c{j + 1}.body.0": f"blocks.{i}.fusions.{j}" for j in range(STEPS)}
    return found
