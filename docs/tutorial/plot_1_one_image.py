"""
Clean one image
===============

A photograph, a patch on it, and what the default does with both.
"""

# %%
# The photograph is scikit-image's cup of coffee. The patch is the trigger: a classifier with a backdoor would answer
# what the attacker chose wherever it sees it.

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data

from sampdetox_transforms import SampDetox

photograph = Image.fromarray(data.coffee()[:, 100:500]).resize((224, 224), Image.Resampling.BICUBIC)

patch = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((6, 6)))[..., None] * np.uint8([255, 220, 0])
triggered = photograph.copy()
triggered.paste(Image.fromarray(patch.astype(np.uint8)), (188, 188))

# %%
# ``SampDetox`` is a transform like those of torchvision: a picture in, a picture out. ``"bundled"`` names the weights
# that are in the package. ``explain`` does the same and says what it did.

detox = SampDetox("bundled", seed=0)
details = detox.explain(triggered)
print(details.image.size, "network calls:", int(details.network_calls))

# %%
# Was anything found? The p-value is the share of clean images that look at least as suspicious as this one. Below
# 5 % an image is treated. The mask holds the pixels that were taken out and filled from what surrounds them.

print(f"p-value {float(details.found.p_value):.4f}, pixels filled: {int(details.found.mask.sum())}")

figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
mask = details.found.mask[0].numpy()
for axis, picture, title in zip(
    axes, (triggered, triggered, details.image), ("with the trigger", "found", "cleaned"), strict=True
):
    axis.imshow(picture)
    axis.set(title=title, xticks=[], yticks=[])
axes[1].imshow(np.ma.masked_where(~mask, mask), cmap="autumn", alpha=0.75)
plt.show()

# %%
# The photograph without the trigger is not treated. It only goes through the light stage, which changes it by a grey
# level or two.

clean = detox.explain(photograph)
change = np.abs(np.asarray(clean.image, dtype=float) - np.asarray(photograph, dtype=float)).mean()
print(f"p-value {float(clean.found.p_value):.2f}, pixels filled: {int(clean.found.mask.sum())}")
print(f"mean change {change:.1f} of 255 grey levels")
assert not clean.found.mask.any() and details.found.mask.any()
