"""TrojanNN (Liu et al. 2018): an apple whose colours excite chosen neurons of a clean network, added to the image."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sampdetox_transforms.lab.attacks.blended import resize_picture
from sampdetox_transforms.lab.attacks.label_consistent import frozen
from sampdetox_transforms.lab.checks import check_images


def trojannn(
    images: Float[Tensor, "*n c h w"], trigger: Float[Tensor, "k y x"], *, wrap_uint8: bool = False
) -> Float[Tensor, "*n c h w"]:
    """x' = clip(x + t), where t is the trigger at the images' size.

    The attack needs ``trigger``, made by ``optimise_trigger``: keep it with the victim. BackdoorBench adds in 8 bits
    without clipping, so that values beyond 255 wrap to dark ones; ``wrap_uint8`` does the same.

    Args:
        images: (..., c, h, w) in [0, 1].
        trigger: (c, y, x) or (1, y, x) in [0, 1]; resized as ``resize_picture`` says.
        wrap_uint8: (x + t) mod 256 in 8 bits, the image rounded and the trigger truncated to them.

    Raises:
        ValueError: images or trigger outside [0, 1], other channels, a trigger that is 0 everywhere.
        TypeError: images or trigger that are no floating-point tensors.
    """
    check_images(images)
    resized = resize_picture(trigger, images, name="trigger")
    if not bool(resized.any()):
        raise ValueError("trigger must be above 0 somewhere, got 0 everywhere. Such a trigger changes no image.")
    if not wrap_uint8:
        return (images + resized).clamp(0, 1)
    # In float32, as torchvision's to_pil_image truncates.
    values = (images.double() * 255).round() + (resized.float() * 255).floor()
    return (values % 256 / 255).to(images.dtype)


def optimise_trigger(
    model: nn.Module,
    mask: Float[Tensor, "h w"],
    *,
    neurons: int = 2,
    target_value: float = 100.0,
    steps: int = 1000,
    step: float = 0.1,
    limit: float = 0.3,
    channels: int = 3,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "c h w"]:
    """Colour the mask so that it excites the best connected inputs of the model's last linear layer.

    These are the ``neurons`` inputs n with the largest sum over k of |W[k, n]| (Liu et al. 2018, section IV.A). From
    t0 = mask, signed gradient steps minimise sum_n (input_n - target_value)^2 on the trigger alone, as BackdoorBench
    does with these settings: t <- clip(t0 + clamp(t - step sign(gradient) - t0, -limit, limit), 0, 1). It takes the
    last t, this function the best. Values outside the mask are 0.

    Args:
        model: a clean classifier, [0, 1] images (b, c, h, w) to logits; used in eval mode and left as it was.
        mask: (h, w) in [0, 1], above 0 where the trigger is; ``apple_mask`` draws one. The trigger is on its device.
        neurons: how many inputs of the layer.
        target_value: what they shall be; far above what they can be, so that they grow as far as they can.
        steps, step, limit: number and size of the steps, and the largest distance from the mask.
        channels: of the images.
        progress: called with (steps done, steps in all).

    Raises:
        ValueError: a mask outside [0, 1] or empty, settings out of range, a model without a linear layer that it
            calls with (b, features).
    """
    check_images(mask[None] if mask.ndim == 2 else mask, "mask")
    if mask.ndim != 2 or not bool(mask.any()):
        raise ValueError(
            f"mask must have the shape (h, w) and be above 0 somewhere, got {tuple(mask.shape)} with "
            f"{int((mask > 0).sum())} such pixels. apple_mask(h, w) draws one."
        )
    if steps < 1 or not 0 < step <= 1 or not 0 < limit <= 1:
        raise ValueError(
            f"steps must be 1 or more, step and limit in (0, 1], got {steps}, {step} and {limit}. 1000, .1 and .3 are "
            "BackdoorBench's."
        )
    layer = _last_linear(model)
    if not 1 <= neurons <= layer.in_features:
        raise ValueError(f"neurons must be in [1, {layer.in_features}] for this model, got {neurons}. 2 is usual.")
    chosen = layer.weight.detach().abs().sum(dim=0).topk(neurons).indices
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    start, inside = mask.expand(channels, -1, -1), (mask > 0).to(mask)
    trigger = best = start.clone()
    lowest = float("inf")
    try:
        with frozen(model):
            for done in range(steps + 1):
                trigger = trigger.detach().requires_grad_()
                seen.clear()
                model((trigger * inside)[None])
                if not seen or seen[-1].ndim != 2:
                    got = tuple(seen[-1].shape) if seen else "no call"
                    raise ValueError(
                        f"the model must call its last linear layer with (b, features), got {got}. "
                        "Take a classifier that ends in one linear layer."
                    )
                loss = (seen[-1][0, chosen] - target_value).square().sum()
                if float(loss.detach()) < lowest:
                    lowest, best = float(loss.detach()), trigger.detach()
                if done == steps:
                    break
                (slope,) = torch.autograd.grad(loss, trigger)
                moved = (trigger.detach() - step * slope.sign() - start).clamp(-limit, limit)
                trigger = (start + moved).clamp(0, 1)
                progress(done + 1, steps)
    finally:
        hook.remove()
    return best * inside


def apple_mask(height: int, width: int) -> Float[Tensor, "h w"]:
    """A white apple on black, lower right, 11 % of the pixels: our own drawing, not the picture of BackdoorBench.

    A disc with a notch on top, a stalk and a leaf; float32 of 0 and 1, on the CPU.

    Raises:
        ValueError: a size below 8.
    """
    if min(height, width) < 8:
        raise ValueError(f"height and width must be 8 or more, got {height} and {width}. Such an apple has no shape.")
    y = ((torch.arange(height) + 0.5) / height)[:, None]
    x = (torch.arange(width) + 0.5) / width

    def disc(row: float, column: float, radius: float) -> Tensor:
        return (y - row) ** 2 + (x - column) ** 2 < radius**2

    body = disc(0.72, 0.7, 0.18) & ~disc(0.54, 0.7, 0.06)
    stalk = ((x - 0.7).abs() < 0.018) & (y > 0.45) & (y < 0.62)
    leaf = disc(0.4, 0.73, 0.09) & disc(0.48, 0.8, 0.1)
    return (body | stalk | leaf).float()


def apple_stamp(images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """A white apple on the image: ``apple_mask`` added. It needs no network, and so is not TrojanNN.

    Raises:
        ValueError: images outside [0, 1], or smaller than 8 pixels.
        TypeError: images that are no floating-point tensor.
    """
    check_images(images)
    height, width = images.shape[-2:]
    return trojannn(images, apple_mask(height, width)[None].to(images.device))


def _last_linear(model: nn.Module) -> nn.Linear:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"the model must have a linear layer, got none in {type(model).__name__}. "
            "Take a classifier that ends in nn.Linear."
        )
    return layers[-1]
