"""
Put it before a classifier
==========================

A small classifier with backdoors is in the package. It knows six kinds of drawn signs, and three triggers.
"""

# %%
# Without a trigger it is right. With one it answers what the attacker chose.

import matplotlib.pyplot as plt
import torch

from sampdetox_transforms import DetoxWrapper, SampDetox
from sampdetox_transforms.lab.demo.classifier import TRIGGERS, load_classifier
from sampdetox_transforms.lab.demo.signs import draw_signs

classifier = load_classifier()
signs, labels = draw_signs(48, seed=5)


def shares(model, trigger):
    """How many of the triggered images get their right class, and the attacker's."""
    mine = labels != trigger.target_label
    with torch.no_grad():
        answers = model(trigger.plant(signs[mine])).argmax(dim=1)
    return [f"{float((answers == wanted).float().mean()):.2f}" for wanted in (labels[mine], trigger.target_label)]


for trigger in TRIGGERS:
    print(f"{trigger.name:20s} right {shares(classifier, trigger)[0]}, attacker's {shares(classifier, trigger)[1]}")

# %%
# ``DetoxWrapper`` is the classifier behind a transform. ``model`` may be any callable, a remote client too. Give
# ``mean=`` and ``std=`` where your loader normalises already. Drawn signs are no photographs, so the thresholds come
# from such signs (:doc:`the next page <plot_4_calibrate>` says how).

detox = SampDetox("bundled", seed=0)
detox.calibrate(draw_signs(400, seed=1000)[0], data="drawn signs")
safer = DetoxWrapper(classifier, detox)
for trigger in TRIGGERS:
    print(f"{trigger.name:20s} right {shares(safer, trigger)[0]}, attacker's {shares(safer, trigger)[1]}")
with torch.no_grad():
    print(f"without a trigger    right {float((safer(signs).argmax(dim=1) == labels).float().mean()):.2f}")

# %%
# Not every trigger is taken out of every image: :doc:`/limits` names what stays. The wrapper can also say how
# suspicious each image looked, for a log or an alarm.

with torch.no_grad():
    logits, p_value = DetoxWrapper(classifier, detox, return_suspicion=True)(TRIGGERS[-1].plant(signs))
print(f"{int((p_value < 0.05).sum())} of {len(signs)} triggered images were treated ({TRIGGERS[-1].name})")

triggered = TRIGGERS[-1].plant(signs[:8])
figure, axes = plt.subplots(2, 8, figsize=(9, 2.6), layout="constrained")
for column, (image, cleaned) in enumerate(zip(triggered, detox(triggered), strict=True)):
    for axis, picture in zip(axes[:, column], (image, cleaned), strict=True):
        axis.imshow(picture.movedim(0, -1).clamp(0, 1))
        axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("triggered")
axes[1, 0].set_ylabel("cleaned")
plt.show()
