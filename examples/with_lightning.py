"""A Lightning module that purifies what it classifies.

python examples/with_lightning.py
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sampdetox_transforms import DetoxWrapper, SampDetox


class PurifiedClassifier(lightning.LightningModule):
    """Tests and predicts on purified images; Lightning moves the denoiser to its device with the classifier.

    ``mean`` and ``std`` are those with which the data module normalises; leave them out for images in [0, 1].
    """

    def __init__(self, classifier: nn.Module, detox: SampDetox, **normalisation):
        super().__init__()
        self.safer = DetoxWrapper(classifier, detox, return_suspicion=True, **normalisation)

    def predict_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        logits, p_value = self.safer(batch[0])
        return {"label": logits.argmax(1), "p_value": p_value}

    def test_step(self, batch: list[Tensor]) -> None:
        images, labels = batch
        logits, p_value = self.safer(images)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean())
        self.log("found", (p_value < 0.05).float().mean())


if __name__ == "__main__":
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    data = DataLoader(TensorDataset(torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)), batch_size=4)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.test(PurifiedClassifier(classifier, SampDetox("bundled", seed=0)), data)
