"""Train the networks of preset "restore" on synthetic triggers over GTSRB and CIFAR-10 training images, then calibrate.

    python examples/train_restorer.py --network local --minutes 75 --out runs/restorer
    python examples/train_restorer.py --network dense --minutes 75 --out runs/restorer

A step of "local" draws 72 images to be searched (24 clean, 20 with a local trigger, 28 with a dense one) and 12 with an
erased region to be filled; one of "dense" 72 (12 clean, 12 with a local trigger, 48 with a dense one). A run ends after
--minutes of processor time; killed, it resumes. The one that finds the other's weights in OUT calibrates both and
leaves them in OUT/restorer, in float16, in the form of sampdetox_transforms/weights/restorer.
One GTSRB track in twenty and every twentieth CIFAR image are left out of training; thresholds come from them.
Fills are trained on CIFAR-10's JPEG copy too, the search is not: a trigger pasted into a JPEG gives itself away.
"""

import argparse
import csv
import os
import time
from pathlib import Path

import torch
from _gtsrb import data_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.answer import Answer
from sampdetox_transforms.method.calibration import calibrate, strictest
from sampdetox_transforms.networks.precision import has_fast_bf16
from sampdetox_transforms.networks.restorer import Block, Specialists
from sampdetox_transforms.networks.restorer_files import save_restorer
from sampdetox_transforms.training.triggers.dense import dense_triggers
from sampdetox_transforms.training.triggers.draw import uniform
from sampdetox_transforms.training.triggers.local import erasures, local_triggers

SEARCHED, CLEAN, DENSE, FILLED, ALL_OVER = 72, 24, 28, 12, 48
RATE, WARMUP, DECAY, HELD_OUT, TOLERANCE = 1.5e-3, 300, 0.9985, 20, 6 / 255
# whole GTSRB images, cropped to the sign, between the two, and CIFAR-10
SHARES = (0.32, 0.22, 0.14, 0.32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("local", "dense"), required=True)
    parser.add_argument("--minutes", type=float, default=40, help="of processor time, over all starts")
    parser.add_argument("--cooldown", type=float, default=14, help="the last minutes, over which the rate falls to 0")
    parser.add_argument("--jpeg", type=int, default=25_000, help="JPEG images of CIFAR-10 to learn fills from")
    parser.add_argument("--start", type=Path, help="weights to start from, a restorer.safetensors, where shapes fit")
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    gtsrb, held_out = load_gtsrb_views()
    cifar = load_folder(data_folder() / "cifar10-lossless" / "train")
    jpeg = load_folder(data_folder() / "cifar10-jpeg" / "train", args.jpeg)
    last = torch.arange(len(cifar)) % HELD_OUT == HELD_OUT - 1
    views = [view[~held_out] for view in gtsrb]
    average = train(args, [*views, cifar[~last]], [*views, jpeg])
    half = {name: value.half().contiguous() for name, value in average.items()}
    write_atomically(args.out / f"{args.network}.safetensors", lambda path: save_file(half, path))
    if not all((args.out / f"{name}.safetensors").exists() for name in LOSSES):
        return
    model = Specialists()
    for name in LOSSES:
        state = load_file(args.out / f"{name}.safetensors")
        getattr(model, name).load_state_dict({key: value.float() for key, value in state.items()})
    clean = {"GTSRB train, whole": gtsrb[0][held_out], "GTSRB train, cropped": gtsrb[1][held_out]}
    found = []
    for name, images in [*clean.items(), ("CIFAR-10 train, lossless", cifar[last])]:
        some = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(3))[:800]]
        found.append(calibrate(model.eval(), (some.float() / 127.5 - 1).split(100), data=name))
        print(f"{name}: {len(some)} images, thresholds {found[-1].thresholds}")
    save_restorer(args.out / "restorer", model, strictest(found))


def train(args: argparse.Namespace, searched: list[Tensor], filled: list[Tensor]) -> dict[str, Tensor]:
    """The moving average of the network's weights after ``args.minutes`` of processor time."""
    model = getattr(Specialists(), args.network).to(memory_format=torch.channels_last).train()
    if args.start is not None:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        known = {name: v.float() for name, v in load_file(args.start).items() if shapes.get(name) == v.shape}
        model.load_state_dict(known, strict=False)
        for name, block in model.named_modules():
            if isinstance(block, Block) and f"{name}.second.weight" not in known:  # changes nothing at first
                nn.init.zeros_(block.second.weight)
                nn.init.zeros_(block.second.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=1e-3)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    path, step, used = args.out / f"{args.network}_state.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, used = state["average"], state["step"], state["used"]
    start, bf16 = time.process_time(), has_fast_bf16(torch.device("cpu"))
    while (minutes := used + (time.process_time() - start) / 60) < args.minutes:
        for group in optimizer.param_groups:
            left = (args.minutes - minutes) / args.cooldown
            group["lr"] = args.rate * min(1, (step + 1) / WARMUP, max(left, 1e-3))
        generator = torch.Generator().manual_seed(step + 7)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = LOSSES[args.network](model, searched, filled, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(DECAY, step / (9 + step))
        for name, value in model.state_dict().items():
            average[name].lerp_(value.detach(), 1 - decay)
        if step % 250 == 0:
            print(f"step {step}, {minutes:.1f} min, loss {float(loss.detach()):.3f}", flush=True)
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save({**parts, "step": step, "used": minutes}, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
    return average


def local_loss(model: nn.Module, searched: list[Tensor], filled: list[Tensor], generator: torch.Generator) -> Tensor:
    """Pixels and images with a trigger (cross-entropy), and the image without it and without the hole (L1)."""
    clean, noise = draw(searched, SEARCHED, generator)
    images, region = clean.clone(), torch.zeros(SEARCHED, 1, 32, 32, dtype=torch.bool)
    local, dense = slice(CLEAN, SEARCHED - DENSE), slice(SEARCHED - DENSE, SEARCHED)
    images[local], region[local] = local_triggers(clean[local], generator)
    images[dense] = dense_triggers(clean[dense], generator)
    images = noised_and_rounded(images, noise, generator)
    whole, _ = draw(filled, FILLED, generator)
    erased = erasures(whole, generator)

    target = torch.cat([clean, whole]) * 2 - 1
    x = (torch.cat([images, whole]) * 2 - 1).contiguous(memory_format=torch.channels_last)
    answer = Answer(*(part.float() for part in model(x, torch.cat([torch.zeros_like(region), erased]))))

    unseen = region & ((images - clean).abs().amax(dim=1, keepdim=True) <= 5 / 255)  # a white patch on white
    logits, label = answer.local[:SEARCHED], region.float()
    pixels = functional.binary_cross_entropy_with_logits(
        logits, label, weight=(~unseen).float(), pos_weight=torch.tensor(3.0)
    )
    top = functional.avg_pool2d(logits, 2, stride=1).flatten(1).topk(3, dim=1).values.mean(dim=1)
    shown = (region & ~unseen).flatten(1).any(dim=1).float()
    suspicion = functional.binary_cross_entropy_with_logits(top, shown)
    is_dense = torch.zeros(SEARCHED)
    is_dense[dense] = 1
    all_over = functional.binary_cross_entropy_with_logits(answer.dense[:SEARCHED], is_dense)
    error = (answer.image - target).abs().mean(dim=1, keepdim=True)
    filled_in = (error[SEARCHED:] * erased).sum() / erased.sum().clamp(min=1)
    return 5 * pixels + 0.3 * suspicion + all_over + 4 * error[:SEARCHED].mean() + 2 * filled_in


def dense_loss(model: nn.Module, searched: list[Tensor], _: list[Tensor], generator: torch.Generator) -> Tensor:
    """Images with a dense trigger against those with a local one or none (cross-entropy), and what is left of it."""
    clean, noise = draw(searched, SEARCHED, generator)
    images, other = clean.clone(), SEARCHED - ALL_OVER
    images[other // 2 : other] = local_triggers(clean[other // 2 : other], generator)[0]
    images[other:] = dense_triggers(clean[other:], generator)
    images = noised_and_rounded(images, noise, generator)
    answer = model((images * 2 - 1).contiguous(memory_format=torch.channels_last))
    is_dense = (torch.arange(SEARCHED) >= other).float()
    found = functional.binary_cross_entropy_with_logits(answer.dense.float(), is_dense)
    restored = (answer.image.float()[other:] + 1) / 2
    left, was = ((x - clean[other:]).square().mean(dim=(1, 2, 3)) for x in (restored, images[other:]))
    # energies in proportion to the trigger's amplitude: between equal grey levels and equal shares for faint and strong
    return found + 10 * (left / (was + TOLERANCE**2).sqrt()).mean()


LOSSES = {"local": local_loss, "dense": dense_loss}


def noised_and_rounded(images: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Images with noise of the given standard deviations, half of them in whole 255ths."""
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    rounded = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(rounded, (images * 255).round() / 255, images)


def draw(pools: list[Tensor], n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``n`` images in [0, 1], varied at random, and the standard deviation of the noise to add to each."""
    kind = torch.multinomial(torch.tensor(SHARES), n, replacement=True, generator=generator)
    counts = [int((kind == k).sum()) for k in range(len(pools))]
    picked = [
        pool[torch.randint(len(pool), (count,), generator=generator)] for pool, count in zip(pools, counts, strict=True)
    ]
    x = torch.cat(picked)[torch.randperm(n, generator=generator)].float() / 255
    flip, brighten, gain, shift, by, blur, noise = uniform((7, n, 1, 1, 1), 0, 1, x, generator)
    x = torch.where(flip < 0.5, x, x.flip(-1))
    x = x * torch.where(brighten < 0.3, 0.6 + 0.9 * gain, 1) + torch.where(shift < 0.2, 0.3 * (by - 0.5), 0)
    x = x.clamp(0, 1)
    x = torch.where(blur < 0.06, functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x)
    return x, torch.where(noise < 0.1, 0.3 * noise, 0)


def load_gtsrb_views() -> tuple[list[Tensor], Tensor]:
    """uint8 (n, 3, 32, 32): whole, cropped to the sign, cropped somewhere between the two; and which are held out."""
    root, views, held_out = data_folder() / "gtsrb32", ([], [], []), []
    generator = torch.Generator().manual_seed(0)
    with (root / "train_roi.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        with Image.open(root / row["path"]) as opened:
            image = opened.convert("RGB")
        x1, y1, x2, y2 = (float(row[key]) for key in ("x1", "y1", "x2", "y2"))
        u = (torch.rand(4, generator=generator) * 1.1).clamp(max=1).tolist()
        between = (x1 * u[0], y1 * u[1], 32 - (32 - x2) * u[2], 32 - (32 - y2) * u[3])
        cropped = image.crop(tuple(map(round, (x1, y1, x2, y2)))).resize((32, 32), Image.BILINEAR)
        for view, picture in zip(
            views, (image, cropped, image.resize((32, 32), Image.BILINEAR, box=between)), strict=True
        ):
            view.append(pil_to_tensor(picture))
        held_out.append(int(Path(row["path"]).stem.split("_")[0]) % HELD_OUT == HELD_OUT - 1)
    return [torch.stack(view) for view in views], torch.tensor(held_out)


def load_folder(folder: Path, limit: int | None = None) -> Tensor:
    """uint8 (n, 3, 32, 32), evenly from the sorted files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    images = []
    for path in paths[:: 1 if limit is None else max(1, len(paths) // limit)]:
        with Image.open(path) as image:
            images.append(pil_to_tensor(image.convert("RGB")))
    return torch.stack(images)


if __name__ == "__main__":
    main()
