"""``DetoxWrapper``: a classifier that sees purified images only."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sampdetox_transforms.transforms.checks import as_whole, check_not_traced
from sampdetox_transforms.transforms.dose import candidates_for, dose_of, in_units, in_wanted_units, with_dose
from sampdetox_transforms.transforms.explanation import telling
from sampdetox_transforms.transforms.fit import CANDIDATES, Dose, Fit, fit_to_classifier
from sampdetox_transforms.transforms.images import check_normalisation
from sampdetox_transforms.transforms.passes import in_pass
from sampdetox_transforms.transforms.transform import SampDetox


class DetoxWrapper(nn.Module):
    """A classifier that sees purified images only.

    Args:
        model: any callable from a batch of images to logits: a module, a function, a remote client.
        detox: a ``SampDetox``; None makes one with the default weights.
        mean, std: what images are normalised with when they come in, and again before the model; None takes images
            in [0, 1]. Give them here or to ``detox``, not to both.
        passes: average the logits of so many independent purifications.
        return_suspicion: return (logits, p_value), the latter (n,) as in ``Explanation.found``, of the first pass:
            the share of clean images that look at least as suspicious, of both kinds of trigger. Needs a ``detox``
            whose preset searches for triggers ("restore").
        trigger: as for ``SampDetox``: a ``SharedTrigger`` or its file, taken out first. Give it here or to ``detox``.

    ``fit`` chooses how strong the purification is by what the classifier stands; ``fitted`` says what it chose, None
    before. It is part of ``state_dict``.

    The denoiser gets no gradients and stays in eval mode; gradients reach the images where these ask for them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        detox: SampDetox | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        passes: int = 1,
        return_suspicion: bool = False,
        trigger: Any = None,
    ):
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable on a batch of images, got {type(model).__name__}. Pass the model.")
        whole = as_whole(passes)
        if whole is None or whole < 1:
            raise ValueError(f"passes must be a whole number of 1 or more, got {passes!r}. 1 purifies once.")
        if detox is not None and not isinstance(detox, SampDetox):
            raise TypeError(f"detox must be a SampDetox, got {type(detox).__name__}. Build one with SampDetox(...).")
        normalisation = check_normalisation(mean, std)
        detox = SampDetox() if detox is None else detox
        if normalisation is not None and detox.normalisation is not None:
            raise ValueError("mean and std must be given once, got them here and in detox. Leave one of the two out.")
        if trigger is not None and detox.triggers:
            raise ValueError("trigger must be given once, got one here and one in detox. Leave one of the two out.")
        if return_suspicion and detox.restorer is None:
            raise ValueError(
                "return_suspicion needs a detox that searches for triggers, got one that does not. "
                "Build it with preset='restore', the default."
            )
        self.model, self.passes, self.return_suspicion = model, whole, return_suspicion
        detox = detox if normalisation is None else detox.with_normalisation(*normalisation)
        self.detox = detox if trigger is None else detox.with_trigger(trigger)
        self.fitted: Fit | None = None

    @property
    def device(self) -> torch.device | None:
        """Where the purification computes; None where that follows the images."""
        return self.detox.device

    def forward(self, images: Tensor, **kwargs: Any) -> Any:
        """Logits of purified images: (n, c, h, w) -> what the model returns, averaged over the passes.

        Args:
            images: a batch, in the range that ``detox`` takes.
            kwargs: handed on to the model as they are.

        Raises:
            TypeError: what is not a batch of images as one tensor; several passes over a model that does not return a
                tensor.
            Else what ``detox`` raises.
        """
        if not isinstance(images, Tensor) or images.ndim < 3:
            kind = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"a wrapped classifier takes a batch of images as a tensor (n, c, h, w), got {kind}. Turn pictures "
                "into tensors first, with v2.ToImage() and v2.ToDtype(torch.float32, scale=True), and stack them."
            )
        check_not_traced([images])
        outputs, p_value = [], None
        for index in range(self.passes):
            if self.return_suspicion and index == 0:
                with telling() as told:
                    purified = self.detox(images)
                found = told[0].found
                assert found is not None  # checked above
                p_value = found.p_value
            else:
                with in_pass(index):
                    purified = self.detox(images)
            outputs.append(self.model(purified, **kwargs))
        logits = average(outputs)
        return (logits, p_value) if self.return_suspicion else logits

    def fit(
        self, images: Tensor, budget: float = 0.01, *, candidates: Mapping[str, tuple[Any, ...]] = CANDIDATES
    ) -> Fit:
        """Choose the strongest purification under which the classifier keeps ``1 - budget`` of its own answers.

        The settings of ``detox`` are tried first: where they are within the budget, a fit is no weaker.

        Asks for hard labels only, needs no label and no triggered image, and draws nothing at random: the same images
        give the same choice. A ``SampDetox`` that was handed over stays as it is; the wrapper gets one of its own,
        which shares the networks.

        Args:
            images: clean images (n, c, h, w) in the range that ``detox`` takes, 100 or more, a few hundred are better.
            budget: share of the answers that may change, in [0, 1).
            candidates: as for ``fit_to_classifier``; rates that so small a calibration cannot show are left out.

        Returns:
            What was chosen and what it costs, from now on in use here; ``Fit.steps()`` lists all that was tried.

        Raises:
            ValueError: a preset without a search, too few images, a budget out of range, or what ``detox`` refuses.
        """
        detox = self.detox
        if detox.restorer is None:
            raise ValueError(
                "fit needs a detox that searches for triggers, got one that does not. Build it with preset='restore'."
            )
        detox.check_inputs([images])
        found = fit_to_classifier(
            lambda unit: self.model(in_wanted_units(unit, detox, images)),
            lambda unit, dose: with_dose(detox, dose, fitting=True)(unit),
            in_units(images, detox),
            budget=budget,
            start=dose_of(detox, images),
            candidates=candidates_for(detox, candidates),
            batch_size=detox.batch_size,
        )
        self.fitted, self.detox = found, with_dose(detox, found.dose)
        return found

    def get_extra_state(self) -> Tensor:
        """What was fitted, as part of ``state_dict``: JSON as bytes in a tensor; what was tried is not kept."""
        text = "" if self.fitted is None else json.dumps({**asdict(self.fitted), "trials": []})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """What was fitted in the wrapper that ``state_dict`` is of; nothing leaves the settings that are here."""
        text = bytes(state.tolist()).decode()
        if text:
            content = json.loads(text)
            dose = Dose(**{**content["dose"], "detail": tuple(content["dose"]["detail"])})
            self.fitted = Fit(**{**content, "dose": dose, "trials": ()})
            self.detox = with_dose(self.detox, dose)


def average(outputs: Sequence[Any]) -> Any:
    """The mean of several outputs of a model; one output as it is."""
    if len(outputs) == 1:
        return outputs[0]
    if not all(isinstance(output, Tensor) for output in outputs):
        kind = type(outputs[0]).__name__
        raise TypeError(f"with passes > 1 the model must return a tensor of logits, got {kind}. Use passes=1.")
    return torch.stack(list(outputs)).mean(dim=0)
