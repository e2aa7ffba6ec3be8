"""A trigger of hidden bits in the manner of ISSBA (Li et al. 2021), by an encoder of our own.

ISSBA's encoder is StegaStamp (Tancik et al. 2020), with 100 bits at 224x224 and a perceptual loss. Ours is small and
trains in a minute; its results are not ISSBA's, and so it does not have its name.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms.lab.attacks.label_consistent import check_training_images
from sampdetox_transforms.lab.checks import check_images
from sampdetox_transforms.networks.precision import has_fast_bf16

ENCODER, DECODER = "encoder.", "decoder."

WIDTHS = (16, 32, 64)

GRID, PLANES = 8, 16  # the bits become PLANES x GRID x GRID values, at a quarter of the images' size

POOL = 4  # the decoder sees POOL x POOL places


class Encoder(nn.Module):
    """Images and bits to the residual that hides them: a U-Net of three resolutions, (b, c, h, w) in ±limit."""

    def __init__(self, channels: int, bits: int, limit: float = 0.1):
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.register_buffer("limit", torch.tensor(float(limit)))
        self.bits = nn.Linear(bits, PLANES * GRID * GRID)
        self.first = nn.Conv2d(channels, fine, 3, padding=1)
        self.down1 = nn.Conv2d(fine, middle, 3, 2, padding=1)
        self.down2 = nn.Conv2d(middle, coarse, 3, 2, padding=1)
        self.join = nn.Conv2d(coarse + PLANES, coarse, 3, padding=1)
        self.up2 = nn.Conv2d(coarse + middle, middle, 3, padding=1)
        self.up1 = nn.Conv2d(middle + fine, fine, 3, padding=1)
        self.last = nn.Conv2d(fine, channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "b c h w"], bits: Float[Tensor, "b k"]) -> Float[Tensor, "b c h w"]:
        fine = self.first(images * 2 - 1).relu()
        middle = self.down1(fine).relu()
        coarse = self.down2(middle).relu()
        planes = self.bits(bits * 2 - 1).view(-1, PLANES, GRID, GRID)
        planes = functional.interpolate(planes, size=coarse.shape[2:], mode="bilinear")
        coarse = self.join(torch.cat([coarse, planes], dim=1)).relu()
        middle = self.up2(torch.cat([functional.interpolate(coarse, size=middle.shape[2:]), middle], dim=1)).relu()
        fine = self.up1(torch.cat([functional.interpolate(middle, size=fine.shape[2:]), fine], dim=1)).relu()
        return self.limit * self.last(fine).float().tanh()


class Decoder(nn.Module):
    """Images to a logit for each bit, (b, k)."""

    def __init__(self, channels: int, bits: int):
        super().__init__()
        fine, middle, _ = WIDTHS
        self.layers = nn.Sequential(
            nn.Conv2d(channels, fine, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(fine, middle, 3, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, 2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(POOL),
            nn.Flatten(),
            nn.Linear(middle * POOL * POOL, bits),
        )

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.layers(images * 2 - 1).float()


def stega(images: Float[Tensor, "*n c h w"], state: Mapping[str, Tensor]) -> Float[Tensor, "*n c h w"]:
    """x' = clip(x + E(x, secret)): the same bits in all images, in each by a residual of its own.

    Args:
        images: (..., c, h, w) in [0, 1], of any size; the encoder hides best at the size that it was trained on.
        state: what ``train_stega`` returned; keep it with the victim.

    Raises:
        ValueError: images outside [0, 1] or with other channels, a state of something else.
        TypeError: images that are no floating-point tensor.
    """
    check_images(images)
    encoder = _network(state, ENCODER, images)
    flat = images.reshape(-1, *images.shape[-3:])
    with torch.no_grad():
        residual = encoder(flat.float(), state["secret"].to(images.device).float().expand(len(flat), -1))
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    return (x + residual.view(images.shape)).clamp(0, 1).to(images.dtype)


def bit_accuracy(images: Float[Tensor, "*n c h w"], state: Mapping[str, Tensor]) -> float:
    """Share of the secret's bits that the decoder reads from images as they are: 1 is perfect, .5 is chance.

    Give images that ``stega`` made, purified or not. Arguments and errors as for ``stega``.
    """
    check_images(images)
    decoder = _network(state, DECODER, images)
    with torch.no_grad():
        read = decoder(images.reshape(-1, *images.shape[-3:]).float()) > 0
    return float((read == state["secret"].to(read.device).bool()).double().mean())


def train_stega(
    images: Float[Tensor, "n c h w"],
    *,
    bits: int = 20,
    steps: int = 1500,
    batch_size: int = 32,
    limit: float = 0.1,
    weight: float = 100.0,
    learning_rate: float = 2e-3,
    seed: int = 0,
    bf16: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Train an encoder and a decoder of random bits on nine tenths of the images, and draw the secret.

    Loss: binary cross-entropy of the bits + w mean(r^2), with the residual r. w is 0 until nine bits of ten are read,
    and rises to ``weight`` within 30 % of the steps, as BackdoorBench raises its own. Where ISSBA has a perceptual loss
    and a critic, there are none, and the residual is bounded.

    Args:
        images: (n, c, h, w) in [0, 1], 10 or more, of 8 pixels or more.
        bits: length of the secret.
        steps, batch_size, learning_rate: of Adam; the rate falls to 0 along a cosine.
        limit: largest change of a value, in (0, 1].
        weight: w at the end, on values in [0, 1].
        seed: draws weights, batches, bits, the tenth that is held out, and the secret.
        bf16: None uses bfloat16 where the processor or card has it.
        progress: called with (steps done, steps in all).

    Returns:
        "encoder.*" and "decoder.*", the networks' weights; "secret", (bits,) uint8; "bit_accuracy", (), of the secret
        on the tenth of the images that was held out. On the images' device.

    Raises:
        ValueError: images outside [0, 1], too few or too small, settings out of range.
        TypeError: images that are no floating-point tensor.
    """
    check_training_images(images)
    if len(images) < 10 or min(images.shape[-2:]) < 8:
        raise ValueError(
            f"images must be 10 or more, of 8 pixels or more on both sides, got {len(images)} of "
            f"{images.shape[-2]}x{images.shape[-1]}. Take more or larger ones."
        )
    if min(bits, steps, batch_size) < 1 or not 0 < limit <= 1 or not weight >= 0:
        raise ValueError(
            f"bits, steps and batch_size must be 1 or more, limit in (0, 1] and weight 0 or more, got {bits}, {steps}, "
            f"{batch_size}, {limit} and {weight}. Leave them out for the defaults."
        )
    device, channels = images.device, images.shape[1]
    bf16 = has_fast_bf16(device) if bf16 is None else bf16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder = Encoder(channels, bits, limit).to(device), Decoder(channels, bits).to(device)
        secret = torch.randint(2, (bits,), dtype=torch.uint8)
        order = torch.randperm(len(images)).to(device)
        held_out, trained = order[: len(order) // 10], order[len(order) // 10 :]
        adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], learning_rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        readable = None  # the step at which the bits were first read
        for step in range(steps):
            x = images[trained[torch.randint(len(trained), (batch_size,)).to(device)]].float()
            hidden = torch.randint(2, (batch_size, bits)).to(device).float()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                residual = encoder(x, hidden)
                logits = decoder((x + residual).clamp(0, 1))
            if readable is None and float(((logits > 0) == hidden.bool()).float().mean()) > 0.9:
                readable = step
            w = 0.0 if readable is None else weight * min(1, (step - readable) / (0.3 * steps))
            loss = functional.binary_cross_entropy_with_logits(logits, hidden) + w * residual.square().mean()
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            cosine.step()
            progress(step + 1, steps)
    state = {f"{ENCODER}{name}": value for name, value in encoder.state_dict().items()}
    state |= {f"{DECODER}{name}": value for name, value in decoder.state_dict().items()}
    state["secret"] = secret.to(device)
    state["bit_accuracy"] = torch.tensor(bit_accuracy(stega(images[held_out], state), state), device=device)
    return state


def _network(state: Mapping[str, Tensor], prefix: str, images: Tensor) -> nn.Module:
    """The encoder or decoder whose weights ``state`` has, on the images' device."""
    weights = {name.removeprefix(prefix): v.to(images.device) for name, v in state.items() if name.startswith(prefix)}
    try:
        bits = len(state["secret"])
        channels = weights["first.weight" if prefix == ENCODER else "layers.0.weight"].shape[1]
        with torch.device("meta"):  # no random weights that the next lines would replace
            network = Encoder(channels, bits) if prefix == ENCODER else Decoder(channels, bits)
        network.load_state_dict(weights, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"state must hold {prefix}* and secret as train_stega returns them, got {sorted(state)[:3]}...: {error}"
        ) from error
    if images.shape[-3] != channels:
        raise ValueError(
            f"images must have {channels} channels for this state, got {images.shape[-3]}. Train one on such images."
        )
    return network.eval()
