"""LC, label-consistent (Turner et al. 2019): four corners, on training images that were made hard to recognise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms.lab.checks import check_images
from sampdetox_transforms.networks.precision import has_fast_bf16

# Rows of the left corners' 3x3 signs; the right corners have them mirrored. After BackdoorBench's "all-corners" list.
SIGNS = ((1, -1, -1), (-1, 1, -1), (1, -1, 1))

SIDE = 32  # of the images that the signs were made for


def label_consistent(images: Float[Tensor, "*n c h w"], *, amplitude: float = 1.0) -> Float[Tensor, "*n c h w"]:
    """x' = clip(x + amplitude s), where s is +1 or -1 in the four 3x3 corners and 0 elsewhere: the test images.

    Training images of the target class take ``pgd`` first and keep their label. Amplitude 1 makes the corners black
    and white. Other sizes than 32x32 take the nearest of its 32x32 signs, so that the corners grow with the image.

    Args:
        images: (..., c, h, w) in [0, 1], 6 pixels or more on both sides.
        amplitude: of the corners, in (0, 1]; the original also has 16/255, 32/255 and 64/255.

    Raises:
        ValueError: images outside [0, 1] or too small for the corners, amplitude out of range.
        TypeError: images that are no floating-point tensor.
    """
    check_images(images)
    if not 0 < amplitude <= 1:
        raise ValueError(f"amplitude must be in (0, 1], got {amplitude}. Divide one in grey levels by 255.")
    height, width = images.shape[-2:]
    if min(height, width) < 6:
        raise ValueError(
            f"images must be 6 pixels or more on both sides, got {height}x{width}, which the corners miss. Enlarge."
        )
    signs = torch.zeros(SIDE, SIDE)
    left = torch.tensor(SIGNS, dtype=signs.dtype)
    signs[:3, :3] = signs[-3:, :3] = left
    signs[:3, -3:] = signs[-3:, -3:] = left.flip(1)
    signs = functional.interpolate(signs[None, None], size=(height, width), mode="nearest-exact")[0, 0]
    return (images + amplitude * signs.to(images)).clamp(0, 1)


def pgd(
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    model: nn.Module,
    *,
    eps: float = 8 / 255,
    step: float = 1.5 / 255,
    steps: int = 100,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    bf16: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "n c h w"]:
    """Move images away from their class, by at most ``eps`` a value: LC's training images, before the corners.

    Untargeted PGD from a random start (Madry et al. 2018): x <- clip(x + step sign(gradient of the cross-entropy)). The
    settings are the original's and BackdoorBench's, whose surrogate is adversarially trained; yours is only if you
    trained it so, and on another one the images look more like their class to a victim.

    Args:
        images, labels: (n, c, h, w) in [0, 1], and the classes to leave: for LC, the target class's images.
        model: the surrogate, [0, 1] images to logits (b, k); used in eval mode and left as it was.
        eps, step: largest change and step of a value, in (0, 1].
        steps: number of steps.
        generator: source of the start; None for torch's own.
        batch_size: the result depends on it by rounding only.
        bf16: None computes the model in bfloat16 where the processor or card has it, about twice as fast.
        progress: called with (steps done, steps of all batches).

    Raises:
        ValueError: images outside [0, 1], labels that do not fit, settings out of range.
        TypeError: images that are no floating-point tensor.
    """
    check_training_images(images, labels)
    if not 0 < eps <= 1 or not 0 < step <= 1:
        raise ValueError(f"eps and step must be in (0, 1], got {eps} and {step}. Divide grey levels by 255.")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be 1 or more, got {steps} and {batch_size}. 100 steps are usual.")
    bf16 = has_fast_bf16(images.device) if bf16 is None else bf16
    noise = torch.rand(images.shape, generator=generator, device=generator.device if generator else "cpu") * 2 - 1
    moved = (images + eps * noise.to(images)).clamp(0, 1)
    total, done = steps * -(-len(images) // batch_size), 0
    with frozen(model):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x, y, now = images[part], labels[part], moved[part]
            for _ in range(steps):
                now = now.detach().requires_grad_()
                with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                    logits = model(now)
                (slope,) = torch.autograd.grad(_doubt(logits.float(), y.long()[:, None]).sum(), now)
                now = (x + (now.detach() + step * slope.sign() - x).clamp(-eps, eps)).clamp(0, 1)
                done += 1
                progress(done, total)
            moved[part] = now
    return moved


def _doubt(logits: Float[Tensor, "b k"], labels: Int[Tensor, "b 1"]) -> Float[Tensor, " b"]:
    """A rising function of the cross-entropy, whose slope has its signs, also where a sure model's own would be 0."""
    others = logits.scatter(1, labels, -torch.inf).logsumexp(dim=1)
    return others - logits.gather(1, labels)[:, 0]  # the cross-entropy is log(1 + exp of this)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside: the model in eval mode, gradients on, but none for its parameters. Afterwards: all as it was."""
    training = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode


def check_training_images(images: Tensor, labels: Tensor | None = None) -> None:
    """Refuse all but a batch (n, c, h, w) in [0, 1], with a whole number for each image where labels are given."""
    check_images(images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must have the shape (n, c, h, w), got {tuple(images.shape)}. Stack them.")
    if labels is None:
        return
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be whole numbers, one for each of {len(images)} images, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Give class indices."
        )
