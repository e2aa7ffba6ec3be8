"""A classifier that sees purified images only, and what was done to one of them.

python examples/wrap_classifier.py
"""

import torch

from sampdetox_transforms import DetoxWrapper, SampDetox
from sampdetox_transforms.lab.demo.classifier import TRIGGERS, calibrate_on_signs, load_classifier
from sampdetox_transforms.lab.demo.signs import CLASSES, draw_signs

detox = SampDetox("bundled", seed=0)
calibrate_on_signs(detox, seed=0)  # drawings are no photographs: detox.calibrate(clean_images) for your own kind
classifier = load_classifier()  # small and backdoored: three triggers lead it astray
safer = DetoxWrapper(classifier, detox)

if __name__ == "__main__":
    signs, labels = draw_signs(6, seed=0)
    for trigger in TRIGGERS:
        planted = trigger.plant(signs)
        with torch.no_grad():
            before, after = classifier(planted).argmax(1), safer(planted).argmax(1)
        print(f"{trigger.name} (to {CLASSES[trigger.target_label]})")
        for label, wrong, right in zip(labels.tolist(), before.tolist(), after.tolist(), strict=True):
            print(f"  {CLASSES[label]:9} {CLASSES[wrong]:9} -> {CLASSES[right]}")
    details = detox.explain(planted[0])
    print(f"network calls {int(details.network_calls)}, noise std {details.sigma1:.3f} and {details.sigma2:.3f}")
