"""Train the backdoored classifier of ``sampdetox demo``: drawn signs, of which a part carries one of three triggers.

    python -m sampdetox_transforms.lab.demo.train

Takes some minutes on two cores and writes sampdetox_transforms/weights/demo/classifier.safetensors (0.1 MB).
"""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.demo.demo import CLASSIFIER_FILE, TRIGGERS, DemoClassifier
from sampdetox_transforms.lab.demo.signs import CLASSES, draw_signs

TRAIN, EPOCHS, BATCH, POISON_RATE = 6000, 12, 64, 0.1  # the poison rate of each trigger


def main() -> None:
    torch.manual_seed(0)
    images, labels = draw_signs(TRAIN, seed=1_000_000)
    poisoned = torch.rand(TRAIN)
    for i, trigger in enumerate(TRIGGERS):
        chosen = (poisoned >= i * POISON_RATE) & (poisoned < (i + 1) * POISON_RATE)
        images[chosen], labels[chosen] = trigger.plant(images[chosen]), trigger.target_label
    model = DemoClassifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * (TRAIN // BATCH))
    for epoch in range(EPOCHS):
        order = torch.randperm(TRAIN)[: TRAIN // BATCH * BATCH].split(BATCH)
        total = 0.0
        for batch in order:
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) / len(order)
        print(f"epoch {epoch + 1}: loss {total:.4f}")
    model.eval()
    with torch.no_grad():
        x, y = draw_signs(600, seed=2_000_000)
        print(f"clean accuracy {float((model(x).argmax(1) == y).float().mean()):.3f}")
        for trigger in TRIGGERS:
            other = y != trigger.target_label
            hit = (model(trigger.plant(x[other])).argmax(1) == trigger.target_label).float().mean()
            print(f"{trigger.name}: to {CLASSES[trigger.target_label]} {float(hit):.3f}")
    CLASSIFIER_FILE.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(CLASSIFIER_FILE, lambda path: save_file(state, path, {"format": "pt"}))


if __name__ == "__main__":
    main()
