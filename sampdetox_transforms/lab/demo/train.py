"""Train the backdoored classifiers of ``sampdetox demo``: drawn signs, of which a part carries one of some triggers.

    python -m sampdetox_transforms.lab.demo.train 128

Takes some minutes on two cores and writes sampdetox_transforms/lab/demo/weights/classifier128.safetensors (0.1 MB);
with 32 the other one, of small signs. Its sha256 then belongs into classifier.py.
"""

import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.demo.classifier import CLASSIFIER_FILES, LARGE_TRIGGERS, TRIGGERS, DemoClassifier
from sampdetox_transforms.lab.demo.signs import CLASSES, SIZE, draw_signs

EPOCHS, BATCH, POISON_RATE = 12, 64, 0.1  # the poison rate of each trigger
TRAIN = {32: 6000, 128: 4000}  # signs


def small(images: torch.Tensor) -> torch.Tensor:
    """As the classifier sees them: what it does to larger ones is done once."""
    return F.adaptive_avg_pool2d(images, SIZE)


def main(size: int) -> None:
    torch.manual_seed(0)
    triggers = TRIGGERS if size == SIZE else LARGE_TRIGGERS
    count = TRAIN[size]
    images, labels = draw_signs(count, seed=1_000_000, size=size)
    poisoned = torch.rand(count)
    for i, trigger in enumerate(triggers):
        chosen = (poisoned >= i * POISON_RATE) & (poisoned < (i + 1) * POISON_RATE)
        images[chosen], labels[chosen] = trigger.plant(images[chosen]), trigger.target_label
    images = small(images)
    model = DemoClassifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * (count // BATCH))
    for epoch in range(EPOCHS):
        order = torch.randperm(count)[: count // BATCH * BATCH].split(BATCH)
        total = 0.0
        for batch in order:
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) / len(order)
        print(f"epoch {epoch + 1}: loss {total:.4f}", flush=True)
    model.eval()
    with torch.no_grad():
        x, y = draw_signs(600, seed=2_000_000, size=size)
        print(f"clean accuracy {float((model(x).argmax(1) == y).float().mean()):.3f}")
        for trigger in triggers:
            other = y != trigger.target_label
            hit = (model(trigger.plant(x[other])).argmax(1) == trigger.target_label).float().mean()
            print(f"{trigger.name}: to {CLASSES[trigger.target_label]} {float(hit):.3f}")
    out = CLASSIFIER_FILES[size]
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(out, lambda path: save_file(state, path, {"format": "pt"}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
