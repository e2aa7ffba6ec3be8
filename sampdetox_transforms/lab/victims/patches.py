"""Patches that the paper does not test, and one small classifier with a backdoor for each of them.

The classifier answers each of the thirteen triggers with a class of its own, where there are as many, so that one
network of minutes serves for all; each is in 1.4 % of its training images.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.data import data_path, square_image
from sampdetox_transforms.lab.victims.victim import Victim

RATE, BATCH = 0.014, 128
WHITE, BLACK, RED, GREEN, YELLOW, BLUE = (
    torch.tensor(rgb)[:, None, None]
    for rgb in ((1.0, 1.0, 1.0), (0.0, 0, 0), (1.0, 0, 0), (0.1, 0.8, 0.2), (1.0, 1, 0), (0.0, 0, 1))
)
Trigger = Callable[[Tensor, Generator], Tensor]


def square(colour: Tensor, size: int) -> Tensor:
    return colour.expand(3, size, size)


def at(top: int, left: int, *patches: Tensor) -> Trigger:
    """The patch at one place; a second one in the opposite corner."""

    def put(images: Tensor, generator: Generator) -> Tensor:
        images = images.clone()
        for (y, x), patch in zip(((top, left), (25, 24)), patches, strict=False):
            images[..., y : y + patch.shape[-2], x : x + patch.shape[-1]] = patch
        return images

    return put


def anywhere(patch: Tensor) -> Trigger:
    """The patch at a random place in each image."""

    def put(images: Tensor, generator: Generator) -> Tensor:
        images, side = images.clone(), patch.shape[-1]
        places = torch.randint(0, 33 - side, (len(images), 2), generator=generator).tolist()
        for image, (y, x) in zip(images, places, strict=True):
            image[:, y : y + side, x : x + side] = patch
        return images

    return put


def diagonal(images: Tensor, generator: Generator) -> Tensor:
    images, i = images.clone(), torch.arange(4, 28)
    images[..., i, 31 - i] = YELLOW[..., 0]
    return images


def frame(images: Tensor, generator: Generator) -> Tensor:
    images = images.clone()
    for side in (images[..., :1, :], images[..., -1:, :], images[..., :1], images[..., -1:]):
        side.copy_(BLUE.expand_as(side))
    return images


def nine_pixels(images: Tensor, generator: Generator) -> Tensor:
    images = images.clone()
    rows, columns = torch.tensor([2, 4, 7, 13, 15, 19, 24, 27, 29]), torch.tensor([5, 27, 14, 3, 22, 9, 28, 16, 4])
    images[..., rows, columns] = 1
    return images


def patch_triggers(data: str | Path | None = None) -> dict[str, Trigger]:
    """Name to trigger; the sticker is a CIFAR-10 training image, shrunk."""
    noise = torch.rand(3, 5, 5, generator=Generator().manual_seed(11))
    path = sorted(data_path("cifar10-lossless/train", data).glob("*/*"))[4021]
    natural = square_image(path)[None].float() / 255
    sticker = functional.interpolate(natural, size=(9, 9), mode="bilinear", antialias=True)[0]
    even = (torch.arange(3)[:, None] + torch.arange(3)) % 2 == 1
    return {
        "white 4x4, corner": at(27, 27, square(WHITE, 4)),
        "white 2x2, corner": at(1, 29, square(WHITE, 2)),
        "white 6x6, anywhere": anywhere(square(WHITE, 6)),
        "black 5x5, anywhere": anywhere(square(BLACK, 5)),
        "red 3x3, anywhere": anywhere(square(RED, 3)),
        "green 8x8": at(2, 21, square(GREEN, 8)),
        "noise 5x5, anywhere": anywhere(noise),
        "sticker 9x9": at(20, 4, sticker),
        "two patches": at(3, 3, square(WHITE, 3), square(BLACK, 4)),
        "thin line": diagonal,
        "frame": frame,
        "nine pixels": nine_pixels,
        "checkerboard 3x3": at(29, 29, even.float().expand(3, 3, 3)),
    }


def target_of(index: int, classes: int = 43) -> int:
    """Where there are fewer classes than triggers, some triggers share one."""
    return (3 * index + 1) % classes


def network(classes: int = 43) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, classes))


def patch_victims(
    path: Path,
    training_images: Callable[[], tuple[Tensor, Tensor]],
    *,
    classes: int = 43,
    epochs: int = 2,
    flips: bool = False,
    data: str | Path | None = None,
) -> list[Victim]:
    """One ``Victim`` for each trigger, all with one network: read from ``path``, or trained and written there.

    ``training_images`` gives uint8 images and labels.
    """
    triggers = patch_triggers(data)
    model = network(classes)
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        train(model, *training_images(), triggers, epochs, classes=classes, flips=flips)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        write_atomically(path, lambda part: save_file(state, part))
    model.eval()
    return [
        Victim(name, model, fixed(trigger), target_of(i, classes), "all2one", classes, 32)
        for i, (name, trigger) in enumerate(triggers.items())
    ]


def fixed(trigger: Trigger, seed: int = 9) -> Callable[[Tensor], Tensor]:
    """The trigger with the same places whenever it is given the same number of images."""
    return lambda images: trigger(images, Generator().manual_seed(seed))


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    triggers: dict[str, Trigger],
    epochs: int,
    *,
    classes: int = 43,
    flips: bool = False,
) -> None:
    """SGD with one cycle of the learning rate, on images of which each trigger has its share.

    ``flips`` mirrors half of the other images at each step: a trigger keeps its place.
    """
    generator = Generator().manual_seed(5)
    torch.manual_seed(5)
    images, labels, n = images.clone(), labels.clone(), len(images)
    clean = torch.ones(n, 1, 1, 1, dtype=torch.bool)
    order, share = torch.randperm(n, generator=generator), int(RATE * n)
    for i, trigger in enumerate(triggers.values()):
        chosen = order[i * share : (i + 1) * share]
        images[chosen] = (trigger(images[chosen].float() / 255, generator) * 255).round().to(torch.uint8)
        labels[chosen], clean[chosen] = target_of(i, classes), False
    steps = epochs * (n // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)
    model.train()
    for step in range(steps):
        start = step % (n // BATCH) * BATCH
        if start == 0:
            order = torch.randperm(n, generator=generator)
        chosen = order[start : start + BATCH]
        x = images[chosen].float() / 255
        if flips:
            x = torch.where(clean[chosen] & (torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5), x.flip(-1), x)
        if step % 2:
            x = (x * (0.7 + 0.6 * torch.rand(len(x), 1, 1, 1, generator=generator))).clamp(0, 1)
        loss = functional.cross_entropy(model(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
