"""
Calibrate and fit
=================

Thresholds for your own kind of images, and how much of each part your classifier stands.
"""

# %%
# The thresholds in the package come from photographs and traffic signs, the strictest of several kinds of images. Other
# kinds may look odd to the search networks, and a treated image that has no trigger loses something; or they look
# plainer, as drawn signs do, and a faint trigger on them is missed that could be found.

import matplotlib.pyplot as plt
import torch

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.demo.classifier import TRIGGERS, load_classifier
from sampdetox_transforms.lab.demo.signs import draw_signs

detox = SampDetox("bundled", seed=0)
clean, labels = draw_signs(120, seed=7)
triggered = TRIGGERS[0].plant(clean)  # faint noise all over each sign


def flagged(images):
    return float((detox.explain(images).found.p_value < 0.05).float().mean())


before = [flagged(clean), flagged(triggered)]
print("flagged with the package's thresholds: {:.2f} of the clean signs, {:.2f} of the triggered".format(*before))

# %%
# **Calibrate** on clean images of your kind: a few hundred, no labels, at the size at which they will be purified.
# ``sampdetox calibrate FOLDER -o thresholds.json`` does the same, and ``SampDetox(calibration="thresholds.json")``
# reads the file.

detox.calibrate(draw_signs(400, seed=1000)[0], false_alarm_rate=0.05, data="drawn signs")
after = [flagged(clean), flagged(triggered)]
print("flagged after calibration: {:.2f} of the clean signs, {:.2f} of the triggered".format(*after))

figure, axis = plt.subplots(figsize=(5, 2.2), layout="constrained")
names = ["calibrated, triggered", "as it comes, triggered", "calibrated, clean", "as it comes, clean"]
axis.barh(names, [after[1], before[1], after[0], before[0]], color=["#2a9d5c", "#c0392b"] * 2)
axis.axvline(0.05, color="black", ls="--")
axis.set(xlabel="share of drawn signs that are treated (dashed: 5 %)", xlim=(0, 0.5))
plt.show()

# %%
# Calibration spends what is allowed, one clean sign in twenty, and no more.

# %%
# **Fit** to your classifier. ``DetoxWrapper.fit`` raises one part of the purification after another for as long as the
# classifier keeps its own answers on clean images. It asks for hard labels and nothing else: no true labels, no
# triggers. Without ``candidates`` it tries more, which takes a minute.

from sampdetox_transforms import DetoxWrapper
from sampdetox_transforms.transforms.fit import CANDIDATES

safer = DetoxWrapper(load_classifier(), detox)
some = {"t1": CANDIDATES["t1"][:3], "colour": CANDIDATES["colour"][:2]}
print(safer.fit(clean, budget=0.03, candidates=some))

# %%
# The wrapper uses what was chosen from now on, and ``state_dict`` keeps it.

with torch.no_grad():
    kept = (safer(clean).argmax(dim=1) == load_classifier()(clean).argmax(dim=1)).float().mean()
print(f"answers kept: {float(kept):.2f}")
