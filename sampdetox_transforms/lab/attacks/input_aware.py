"""Dynamic, the input-aware attack (Nguyen and Tran 2020): a network gives each image a trigger of its own."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms.lab.attacks.label_consistent import check_training_images, frozen
from sampdetox_transforms.lab.checks import check_images
from sampdetox_transforms.networks.precision import has_fast_bf16

GENERATOR, MASK = "generator.", "mask."

EPSILON = 1e-7


class TriggerNetwork(nn.Module):
    """The network of both patterns and masks: convolutions down and up again, without skips; (b, k, h, w) in [0, 1].

    Each stage is two 3x3 convolutions with batch normalisation and ReLU, and a max pooling or before them a bilinear
    upsampling, as in the original, which has the widths (32, 64, 128).
    """

    def __init__(self, channels: int, out_channels: int, widths: Sequence[int]):
        super().__init__()
        down = [
            nn.Sequential(_block(before, width), _block(width, width), nn.MaxPool2d(2))
            for before, width in pairwise((channels, *widths))
        ]
        up = [
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear"),
                _block(width, width),
                _block(width, after)[: 3 if i else 2],
            )
            for i, (width, after) in zip(
                range(len(widths) - 1, -1, -1), pairwise((*reversed(widths), out_channels)), strict=True
            )
        ]
        self.layers = nn.Sequential(*down, _block(widths[-1], widths[-1]), *up)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        return self.layers(images * 2 - 1).float().tanh() / 2 + 0.5


def input_aware(images: Float[Tensor, "*n c h w"], state: Mapping[str, Tensor]) -> Float[Tensor, "*n c h w"]:
    """x' = x + (G(x) - x) m(x), with the pattern G and the nearly binary mask m of each image's own (section 4).

    Args:
        images: (..., c, h, w) in [0, 1]; height and width multiples of 2^depth of the networks, usually 4.
        state: what ``train_input_aware`` returned; keep it with the victim.

    Raises:
        ValueError: images outside [0, 1], of another size or with other channels; a state of something else.
        TypeError: images that are no floating-point tensor.
    """
    return input_aware_cross(images, images, state)


def input_aware_cross(
    images: Float[Tensor, "*n c h w"], others: Float[Tensor, "*n c h w"], state: Mapping[str, Tensor]
) -> Float[Tensor, "*n c h w"]:
    """The pattern and mask of ``others`` on ``images``: the label stays true.

    Training with such images (as many as poisoned ones in the original) ties each trigger to its own image. Arguments
    and errors as for ``input_aware``, with equal shapes.
    """
    check_images(images)
    check_images(others, "others")
    if images.shape != others.shape:
        raise ValueError(
            f"images and others must have one shape, got {tuple(images.shape)} and {tuple(others.shape)}. "
            "Take as others a permutation of the batch."
        )
    generator, mask = _network(state, GENERATOR, images), _network(state, MASK, images)
    flat = others.reshape(-1, *others.shape[-3:]).float()
    with torch.no_grad():
        pattern, place = (
            generator(flat).view(images.shape),
            _binary(mask(flat)).view(*images.shape[:-3], 1, *flat.shape[2:]),
        )
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    return _stamp(x, pattern, place).clamp(0, 1).to(images.dtype)


def train_input_aware(
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    target_label: int,
    classifier: nn.Module,
    *,
    mask_epochs: int = 2,
    generator_epochs: int = 10,
    poison_rate: float = 0.1,
    cross_rate: float = 0.1,
    density: float = 0.032,
    widths: Sequence[int] = (16, 32),
    batch_size: int = 64,
    learning_rate: float = 0.01,
    seed: int = 0,
    bf16: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Train the mask network, then the generator together with a classifier that learns its backdoor.

    Losses (Nguyen and Tran 2020, section 4, and their code): for the masks, 100 mean(relu(m - density)) plus the
    diversity |x1 - x2| / |m1 - m2| (root mean squares, over pairs of images); for generator and classifier, the
    cross-entropy of poisoned, cross and clean images plus the diversity of the patterns. Adam (betas .5 and .9) for the
    networks, SGD for the classifier.

    Departures, so that it takes minutes on a processor: narrower networks by one stage than (32, 64, 128), 2 epochs in
    place of 25 and 10 in place of 600, a one-cycle learning rate for the classifier, no augmentation. |x1 - x2| is in
    standard deviations of the images, as where the original normalises CIFAR-10.

    Args:
        images, labels: the training set, (n, c, h, w) in [0, 1] and (n,).
        target_label: the attacker's class.
        classifier: with random weights, [0, 1] images to logits; a copy is trained, and dropped.
        mask_epochs, generator_epochs: passes over the images.
        poison_rate, cross_rate: shares of each batch.
        density: share of the pixels that a mask takes without penalty.
        widths: channels of the networks' stages.
        learning_rate: of the two networks.
        seed: draws the weights and the order.
        bf16: None uses bfloat16 where the processor or card has it.
        progress: called with (steps done, steps in all).

    Returns:
        "generator.*" and "mask.*", the networks' weights, on the images' device.

    Raises:
        ValueError: images outside [0, 1] or of a size that the networks cannot take, labels, target or settings that do
            not fit.
        TypeError: images that are no floating-point tensor.
    """
    check_training_images(images, labels)
    _check_size(images, len(widths))
    poisoned, crossed = round(poison_rate * batch_size), round(cross_rate * batch_size)
    if min(poisoned, crossed) < 1 or poisoned + crossed > batch_size:
        raise ValueError(
            f"poison_rate and cross_rate must each take an image of a batch and together no more than all, got "
            f"{poison_rate} and {cross_rate} of {batch_size}. .1 and .1 of 64 are the defaults."
        )
    if len(images) < batch_size:
        raise ValueError(f"images must be {batch_size} or more, a batch, got {len(images)}. Lower batch_size.")
    if min(mask_epochs, generator_epochs) < 1:
        raise ValueError(
            f"epochs must be 1 or more, got {mask_epochs} and {generator_epochs}. 2 and 10 are the defaults."
        )
    device, channels = images.device, images.shape[1]
    classifier = copy.deepcopy(classifier).to(device)
    with frozen(classifier), torch.no_grad():
        classes = classifier(images[:1]).shape[1]
    highest = int(labels.max())
    if not 0 <= target_label < classes or int(labels.min()) < 0 or highest >= classes:
        raise ValueError(
            f"target_label and labels must be classes of the classifier, 0...{classes - 1}, got {target_label} and "
            f"{int(labels.min())}...{highest}. Build it for all classes."
        )
    steps = len(images) // batch_size
    total = steps * (mask_epochs + generator_epochs)
    bf16 = has_fast_bf16(device) if bf16 is None else bf16
    deviation = images.std(dim=(0, 2, 3), keepdim=True).clamp(min=EPSILON)

    def diversity(x1: Tensor, x2: Tensor, out1: Tensor, out2: Tensor) -> Tensor:
        return (_distance(x1 / deviation, x2 / deviation) / (_distance(out1, out2) + EPSILON)).mean()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mask = TriggerNetwork(channels, 1, widths).to(device)
        generator = TriggerNetwork(channels, channels, widths).to(device)
        adam = torch.optim.Adam(mask.parameters(), learning_rate, betas=(0.5, 0.9))
        done = 0
        for one, two in _pairs(len(images), batch_size, mask_epochs):
            x1, x2 = images[one.to(device)], images[two.to(device)]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                m1, m2 = _binary(mask(x1)), _binary(mask(x2))
            loss = 100 * functional.relu(m1 - density).mean() + diversity(x1, x2, m1, m2)
            _step(loss, adam)
            done += 1
            progress(done, total)

        mask.eval().requires_grad_(False)
        classifier.train()
        adam = torch.optim.Adam(generator.parameters(), learning_rate, betas=(0.5, 0.9))
        sgd = torch.optim.SGD(classifier.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=steps * generator_epochs)
        both = min(poisoned, crossed)
        for one, two in _pairs(len(images), batch_size, generator_epochs):
            x, y = images[one.to(device)], labels[one.to(labels.device)].to(device).long()
            x1, rest = x[:poisoned], x[poisoned:]
            x2 = images[two.to(device)][poisoned : poisoned + crossed]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                g1, g2 = generator(x1), generator(x2)
                bad = _stamp(x1, g1, _binary(mask(x1)))
                cross = _stamp(rest[:crossed], g2, _binary(mask(x2)))
                logits = classifier(torch.cat([bad, cross, rest[crossed:]])).float()
            y = torch.cat([torch.full_like(y[:poisoned], target_label), y[poisoned:]])
            loss = functional.cross_entropy(logits, y) + diversity(x1[:both], x2[:both], g1[:both], g2[:both])
            _step(loss, adam, sgd)
            cycle.step()
            done += 1
            progress(done, total)
    networks = {GENERATOR: generator.eval(), MASK: mask}
    return {f"{prefix}{name}": value for prefix, net in networks.items() for name, value in net.state_dict().items()}


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def _binary(mask: Tensor) -> Tensor:
    return (20 * mask - 10).tanh() / 2 + 0.5


def _stamp(x: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
    return x + (pattern - x) * mask


def _distance(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    # The root's slope is infinite at 0, where two images are equal.
    return (a - b).square().mean(dim=(1, 2, 3)).clamp(min=EPSILON**2).sqrt()


def _pairs(n: int, batch_size: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of two batches, each from its own order of all images, from torch's own generator."""
    for _ in range(epochs):
        orders = (torch.randperm(n).split(batch_size) for _ in range(2))
        yield from ((one, two) for one, two in zip(*orders, strict=True) if len(one) == batch_size)


def _step(loss: Tensor, *optimisers: torch.optim.Optimizer) -> None:
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


def _check_size(images: Tensor, depth: int) -> None:
    height, width = images.shape[-2:]
    if height % 2**depth or width % 2**depth:
        raise ValueError(
            f"height and width must be multiples of {2**depth} for these networks, got {height} and {width}. "
            "Resize or pad the images."
        )


def _network(state: Mapping[str, Tensor], prefix: str, images: Tensor) -> TriggerNetwork:
    """The network whose weights ``state`` has under ``prefix``, in eval mode on the images' device."""
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        depth = max(int(name.split(".")[1]) for name in weights) // 2
        widths = [len(weights[f"layers.{i}.0.0.weight"]) for i in range(depth)]
        channels = weights["layers.0.0.0.weight"].shape[1]
        with torch.device("meta"):  # no random weights that the next lines would replace
            network = TriggerNetwork(channels, 1 if prefix == MASK else channels, widths)
        network.load_state_dict({k: v.to(images.device) for k, v in weights.items()}, assign=True)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"state must hold {prefix}* as train_input_aware returns them, got {sorted(state)[:3]}...: {error}"
        ) from error
    if images.shape[-3] != channels:
        raise ValueError(
            f"images must have {channels} channels for this state, got {images.shape[-3]}. Train one on such images."
        )
    _check_size(images, depth)
    return network.eval()
