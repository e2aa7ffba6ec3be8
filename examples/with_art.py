"""SampDetox as a preprocessing defence of the Adversarial Robustness Toolbox (ART).

python examples/with_art.py
"""

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from sampdetox_transforms import SampDetox
from sampdetox_transforms.integrations.art import DetoxPreprocessor


def defended(model: nn.Module, detox: SampDetox, size: int, classes: int) -> PyTorchClassifier:
    """An ART classifier of colour images in [0, 1] that are purified before each prediction."""
    return PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, size, size),
        nb_classes=classes,
        clip_values=(0, 1),
        preprocessing_defences=[DetoxPreprocessor(detox)],
        device_type="gpu" if torch.cuda.is_available() else "cpu",
    )


if __name__ == "__main__":
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    classifier = defended(model, SampDetox("bundled", seed=0), size=32, classes=10)
    print(classifier.predict(np.random.default_rng(0).random((2, 3, 32, 32), dtype="float32")).argmax(1))
