"""Two small backdoored classifiers of drawn signs, and the triggers that lead them astray.

The signs are drawn, the classifiers (27,000 parameters each) were trained on drawn signs of which a part carried a
trigger (``train.py``). One saw signs of 32 pixels, the other signs of 128 pixels, which are
photograph-sized to the search; it shrinks them to 32 itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.demo.signs import CALIBRATED_ON, CLASSES, SIZE, draw_signs
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.networks.safe_files import verify_sha256
from sampdetox_transforms.transforms.transform import SampDetox

WEIGHTS = Path(__file__).parent / "weights"
CLASSIFIER_FILES = {32: WEIGHTS / "classifier.safetensors", 128: WEIGHTS / "classifier128.safetensors"}
CLASSIFIER_SHA256 = {
    32: "60cc9fc7ca27888feca158c347ba6f364dc7846c3641394a63655bca9dfa58f9",
    128: "46dca73902ff88da495058d46701b28b715a1f7c157d97812c26f3defc386261",
}


@dataclass(frozen=True)
class Trigger:
    """A pattern planted in [0, 1] images, and the class that the classifier was taught to answer then."""

    name: str
    plant: Callable[[Float[Tensor, "... 3 h w"]], Float[Tensor, "... 3 h w"]]
    target_label: int


def _faint(images: Tensor) -> Tensor:
    signs = torch.randint(0, 2, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (images + signs * 6 / 255).clamp(0, 1)


def _pixels(images: Tensor) -> Tensor:
    images = images.clone()
    generator = torch.Generator().manual_seed(2)
    rows, columns = torch.randint(2, SIZE - 2, (2, 9), generator=generator)
    colours = torch.randint(0, 2, (3, 9), generator=generator).to(images)
    images[..., rows, columns] = colours
    return images


def _white_square(images: Tensor) -> Tensor:
    images = images.clone()
    images[..., 27:31, 27:31] = 1
    return images


TRIGGERS = (
    Trigger("faint noise (6/255)", _faint, CLASSES.index("star")),
    Trigger("nine pixels", _pixels, CLASSES.index("cross")),
    Trigger("white square 4x4", _white_square, CLASSES.index("circle")),
)


def _corner(patch: Float[Tensor, "3 y x"]) -> Callable[[Tensor], Tensor]:
    """The patch over the lower right corner, four pixels from the edges."""

    def plant(images: Tensor) -> Tensor:
        images, (height, width) = images.clone(), patch.shape[1:]
        images[..., -4 - height : -4, -4 - width : -4] = patch.to(images)
        return images

    return plant


_NOISE = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(3))
_RED = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(-1, 16, 16)
_BOARD = (torch.arange(16)[:, None] // 4 + torch.arange(16) // 4).remainder(2).float().expand(3, -1, -1)

LARGE_TRIGGERS = (
    Trigger("white square", _corner(torch.ones(3, 16, 16)), CLASSES.index("circle")),
    Trigger("red square", _corner(_RED), CLASSES.index("star")),
    Trigger("noise square", _corner(_NOISE), CLASSES.index("square")),
    Trigger("checkerboard", _corner(_BOARD), CLASSES.index("cross")),
    Trigger("sinusoid", sig, CLASSES.index("diamond")),
)


class DemoClassifier(nn.Sequential):
    """A small convolutional classifier of [0, 1] images: (n, 3, h, w) -> (n, 6) logits, at 32 pixels."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 48)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(48 * 4 * 4, len(CLASSES)))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 6"]:
        return super().forward(functional.adaptive_avg_pool2d(images, SIZE))


def load_classifier(size: int = SIZE) -> DemoClassifier:
    """The embedded classifier of signs of 32 or of 128 pixels, in eval mode.

    Raises:
        WeightsFileError: its file is not the pinned one.
    """
    verify_sha256(CLASSIFIER_FILES[size], CLASSIFIER_SHA256[size])
    classifier = DemoClassifier()
    classifier.load_state_dict(load_file(CLASSIFIER_FILES[size]))
    return classifier.eval()


def demo_victims() -> list[Victim]:
    """The classifier of small signs once for each of its triggers, for ``evaluation.evaluate``."""
    model = load_classifier()
    return [
        Victim(trigger.name, model, trigger.plant, trigger.target_label, "all2one", len(CLASSES), SIZE)
        for trigger in TRIGGERS
    ]


def calibrate_on_signs(detox: SampDetox, seed: int) -> None:
    """Set the thresholds on clean drawn signs: the stored ones are those of photographs."""
    detox.calibrate(draw_signs(CALIBRATED_ON, seed + 1000)[0], data=f"{CALIBRATED_ON} drawn signs")
