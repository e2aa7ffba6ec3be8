"""``DetoxPreprocessor``: SampDetox as a defence of the Adversarial Robustness Toolbox (ART)."""

from typing import Any

from art.defences.preprocessor.preprocessor import PreprocessorPyTorch  # pyright: ignore[reportMissingImports]
from torch import Tensor

from sampdetox_transforms.transforms.transform import SampDetox


class DetoxPreprocessor(PreprocessorPyTorch):
    """Purify what an ART classifier is given: ``PyTorchClassifier(..., preprocessing_defences=[DetoxPreprocessor()])``.

    Images are (n, c, h, w) in [0, 1]: give the classifier ``clip_values=(0, 1)`` and leave its normalisation in the
    model. Attacks that ask for a gradient get that of the identity (BPDA): the purification has none of its own. To
    train on purified images purify them once beforehand, or ask for it here, which costs as much in every epoch.

    Args:
        detox: a ``SampDetox``; None makes one with the default weights.
        device_type: "cpu", or "gpu" for CUDA.
        apply_fit, apply_predict: whether images are purified in training and in prediction.
    """

    def __init__(
        self,
        detox: SampDetox | None = None,
        *,
        device_type: str = "cpu",
        apply_fit: bool = False,
        apply_predict: bool = True,
    ):
        super().__init__(device_type=device_type, apply_fit=apply_fit, apply_predict=apply_predict)
        if detox is not None and not isinstance(detox, SampDetox):
            raise TypeError(f"detox must be a SampDetox, got {type(detox).__name__}. Build one with SampDetox(...).")
        self.detox = SampDetox(device=self.device) if detox is None else detox

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return self.detox(x.detach()) + (x - x.detach()), y  # the second term is 0, and has the identity's gradient

    def estimate_forward(self, x: Tensor, y: Any = None) -> Tensor:
        return x
