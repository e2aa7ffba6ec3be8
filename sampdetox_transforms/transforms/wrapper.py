"""``DetoxWrapper``: a classifier that sees purified images only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sampdetox_transforms.transforms.images import check_normalisation
from sampdetox_transforms.transforms.transform import SampDetox


class DetoxWrapper(nn.Module):
    """A classifier that sees purified images only.

    Args:
        model: any callable from a batch of images to logits: a module, a function, a remote client.
        detox: a ``SampDetox``; None makes one with the default weights.
        mean, std: what images are normalised with when they come in, and again before the model; None takes images
            in [0, 1]. Give them here or to ``detox``, not to both.
        passes: average the logits of so many independent purifications.
        return_suspicion: return (logits, suspicion), the latter as in ``Explanation``: (n,), of the first pass; needs
            a ``detox`` whose preset searches for triggers ("restore").

    The denoiser gets no gradients and stays in eval mode; gradients reach the images where these ask for them.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        detox: SampDetox | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        passes: int = 1,
        return_suspicion: bool = False,
    ):
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable on a batch of images, got {type(model).__name__}. Pass the model.")
        if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
            raise ValueError(f"passes must be a whole number of 1 or more, got {passes!r}. 1 purifies once.")
        if detox is not None and not isinstance(detox, SampDetox):
            raise TypeError(f"detox must be a SampDetox, got {type(detox).__name__}. Build one with SampDetox(...).")
        normalisation = check_normalisation(mean, std)
        detox = SampDetox() if detox is None else detox
        if normalisation is not None and detox.normalisation is not None:
            raise ValueError("mean and std must be given once, got them here and in detox. Leave one of the two out.")
        if return_suspicion and detox.restorer is None:
            raise ValueError(
                "return_suspicion needs a detox that searches for triggers, got one that does not. "
                "Build it with preset='restore', the default."
            )
        self.model, self.passes, self.return_suspicion = model, passes, return_suspicion
        self.detox = detox if normalisation is None else detox.with_normalisation(*normalisation)

    def forward(self, images: Tensor) -> Any:
        """Logits of purified images: (n, c, h, w) -> what the model returns, averaged over the passes.

        Raises:
            TypeError: several passes over a model that does not return a tensor.
        """
        if self.return_suspicion:
            explained = [self.detox.explain_pass(images, i) for i in range(self.passes)]
            outputs = self._average([self.model(each.image) for each in explained])
            return outputs, explained[0].suspicion
        return self._average([self.model(self.detox.purify_pass(images, i)) for i in range(self.passes)])

    def _average(self, outputs: list[Any]) -> Any:
        if self.passes == 1:
            return outputs[0]
        if not all(isinstance(output, Tensor) for output in outputs):
            kind = type(outputs[0]).__name__
            raise TypeError(f"with passes > 1 the model must return a tensor of logits, got {kind}. Use passes=1.")
        return torch.stack(outputs).mean(dim=0)
