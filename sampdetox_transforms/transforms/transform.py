"""``SampDetox``: the method as a torchvision transform.

Devices, seeds, batches and weights are here; kinds and ranges of images are in ``images.py``, the method itself is in
``sampdetox_transforms.method``.
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from sampdetox_transforms.method.calibration import Calibration, Calibrations, calibrate
from sampdetox_transforms.method.noise import SeededNoise, fresh_noise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.result import Purified, joined
from sampdetox_transforms.method.sampdetox import on_schedule
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.catalogue import DetoxWeights, load_denoiser
from sampdetox_transforms.networks.precision import fastest_dtype, set_precision
from sampdetox_transforms.networks.restorers import Restorers, find_restorers
from sampdetox_transforms.transforms.checks import (
    NotScripted,
    check_batch_size,
    check_levels,
    check_not_traced,
    check_seed,
    check_worker,
)
from sampdetox_transforms.transforms.explanation import TOLD, Explanation, explanation_of, nothing_done
from sampdetox_transforms.transforms.images import (
    IMAGE_TYPES,
    as_tensor,
    check_device,
    check_normalisation,
    check_sample,
    from_core,
    is_pure_tensor,
    to_core,
)
from sampdetox_transforms.transforms.passes import PASS, in_pass
from sampdetox_transforms.transforms.presets import DEFAULT, Preset, get_preset
from sampdetox_transforms.transforms.shared_removal import as_triggers, check_shapes, without_triggers
from sampdetox_transforms.transforms.watch import Watch

CPU = torch.device("cpu")


class SampDetox(NotScripted, v2.Transform):
    """Take backdoor triggers out of images (SampDetox, NeurIPS 2024, and past it), without access to a classifier.

    Takes PIL images (L or RGB), ``tv_tensors.Image`` and ``Video``, and tensors: uint8, or float in [0, 1], of shape
    (c, h, w) or (n, c, h, w) or with more leading dimensions, c = 1 or 3, any height and width. The result has the
    type, dtype, device and value range of the input. In a sample of several things, torchvision's rule holds: all
    explicit images are purified, or else the first pure tensor; labels, masks and boxes pass through.

    Args:
        weights: a ``DetoxWeights`` member or its name ("bundled" needs no network), ``"user/repo[@revision]"`` on the
            Hub, a folder in diffusers' format, a (network, schedule) pair, or a ``Denoiser``. A folder that
            ``sampdetox train`` made also brings its other networks and thresholds.
        preset: "restore" (triggers are looked for and filled), "ddim" (Algorithm 1 in 7 network calls), "paper",
            "paper-linear", "authors-code", or settings: ``Restore``, ``Algorithm1`` or ``AuthorsCode``. The settings
            below change it where given.
        t1: noise level of the global stage (faint triggers); the paper's is 20.
        t2: highest noise level of the local stage (visible triggers); the paper's is 120.
        sampler: "ddim" or "ddpm".
        stride: levels between two network calls; 20 is the paper's speed-up pace. DDPM walks every level: give 1.
        schedule: what the levels mean: "linear", "scaled_linear" or "cosine" (presets: mostly the network's own).
        restorer: the other networks of preset "restore": a folder, or ``Restorers``; None for the package's own.
        calibration: their thresholds: a file that ``sampdetox calibrate`` wrote, a ``Calibrations``, or a
            ``Calibration`` for small images; None for those that come with the networks.
        trigger: a ``SharedTrigger``, its file, or several of them: where one is recognised it is taken out first. All
            images must then have its shape.
        mean, std: undo a normalisation before, and redo it after; for a transform placed behind ``Normalize``.
        device: where to compute. None: where the module is (``.to`` moves it), or on the input's accelerator.
        dtype: what the networks compute in; None for bfloat16 where the processor or card has it, and float32
            elsewhere, but a ``Denoiser`` or network that is handed over stays as it is. torch.float32 for results that
            are the same everywhere.
        batch_size: how many images go through the network at once; None for 64.
        seed: None draws fresh noise at each call. With a seed, an image's noise depends on the seed and the image
            alone, so that its result is the same in any batch or order (within 1e-4 in float32).
        cache_dir, local_files_only, token: passed on to huggingface_hub.

    Raises:
        ValueError: a level that the checkpoint does not know, an unknown name, a setting out of range.
        OSError: weights that cannot be downloaded or read (``DownloadError``, ``WeightsFileError``).
        In a call: ValueError for images out of range, holding NaN or of another channel count; TypeError for a
        sample without an image and for dtypes that are not images'; RuntimeError where it is traced or exported.
    """

    def __init__(
        self,
        weights: Any = DetoxWeights.DEFAULT,
        *,
        preset: str | Preset = DEFAULT,
        t1: float | None = None,
        t2: float | None = None,
        sampler: str | None = None,
        stride: float | None = None,
        schedule: str | None = None,
        restorer: str | os.PathLike[str] | Restorers | None = None,
        calibration: str | os.PathLike[str] | Calibrations | Calibration | None = None,
        trigger: Any = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ):
        super().__init__()
        self.settings = get_preset(preset, t1=t1, t2=t2, sampler=sampler, stride=stride, schedule=schedule)
        self.normalisation = check_normalisation(mean, std)
        self.batch_size, self.seed = check_batch_size(batch_size), check_seed(seed)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating-point dtype, got {dtype}. torch.bfloat16 is the fast one.")
        self.triggers = as_triggers(trigger)
        target = check_device(device)
        searches = isinstance(self.settings, Restore)
        if not searches and (restorer is not None or calibration is not None):
            raise ValueError(
                f"restorer and calibration need a preset that searches for triggers, got {preset!r}. Leave them out, "
                "or take preset='restore'."
            )
        denoiser = load_denoiser(weights, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
        if denoiser is weights and dtype not in (None, denoiser.dtype):
            denoiser = copy.deepcopy(denoiser)  # the one that was handed over stays as it is
        self._fastest = dtype is None and isinstance(weights, (str, os.PathLike, DetoxWeights))
        self.denoiser = denoiser
        name = self.settings.schedule
        self.schedule = denoiser.schedule if name is None else Schedule.named(name)
        check_levels(self.settings, denoiser, self.schedule)
        self.restorer: Restorers | None = None
        self.calibration: Calibrations | None = None
        self.watch = Watch(far=not (restorer or calibration or os.path.isdir(f"{denoiser.source}/restorer")))
        if searches:
            networks, self.calibration = find_restorers(weights, restorer, calibration)
            self.restorer = copy.deepcopy(networks) if networks is restorer else networks  # as the denoiser
        self._set_precision(fastest_dtype(denoiser.device or CPU) if self._fastest else dtype)
        if target is not None:
            self.to(target)
        self._device = target

    def __repr__(self) -> str:
        given = ", ".join(f"{f.name}={getattr(self.settings, f.name)!r}" for f in fields(self.settings))
        return f"SampDetox(weights={self.denoiser.source!r}, {type(self.settings).__name__}({given}), seed={self.seed})"

    def extra_repr(self) -> str:
        return ""

    def get_extra_state(self) -> Tensor:
        """The thresholds, as part of ``state_dict``: JSON as bytes in a tensor, which every format of weights keeps."""
        text = "" if self.calibration is None else json.dumps(asdict(self.calibration))
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Thresholds that ``state_dict`` held; none leaves those that are here."""
        text = bytes(state.tolist()).decode()
        if text:
            self.calibration = Calibrations.of_dict(json.loads(text))

    def _set_precision(self, dtype: torch.dtype | None) -> None:
        self.denoiser.set_precision(dtype)
        if self.restorer is not None:
            set_precision(self.restorer, self.denoiser.dtype)

    def _apply(self, fn: Callable, recurse: bool = True) -> "SampDetox":
        """What ``.to`` does; on another kind of device the fastest dtype may be another."""
        before = self.denoiser.device
        super()._apply(fn, recurse)
        after = self.denoiser.device
        if self._fastest and before is not None and after is not None and after.type != before.type:
            self._set_precision(fastest_dtype(after))
        return self

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuse what cannot be purified before any work; see the class for what is raised."""
        check_not_traced(flat_inputs)
        images = check_sample(flat_inputs, self.normalisation)
        check_shapes(self.triggers, images)
        check_worker([self.denoiser.device, *(image.device for image in images if isinstance(image, Tensor))])

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Purify one image or batch; masks, boxes and the like are returned as they are.

        Nothing but the result is kept of a batch once the next one runs.
        """
        if not isinstance(inpt, IMAGE_TYPES) and not is_pure_tensor(inpt):
            return inpt
        if (told := TOLD.get()) is not None:
            told.append(self._explain(inpt))
            return told[-1].image
        tensor, x0 = self._core_images(inpt)
        results = [self._purify(chunk).image for chunk in x0.split(self.batch_size) if len(chunk)]
        return from_core(torch.cat(results) if results else x0, self.normalisation, inpt, tensor)

    def explain(self, image: Any, *, pass_index: int = 0) -> Explanation:
        """Purify one image or batch and say what was done; raises what a call raises.

        Args:
            image: as for a call, but a single thing.
            pass_index: which of several purifications of the same image it is: with a seed, each draws its own noise.
        """
        self.check_inputs([image])
        with in_pass(pass_index):
            return self._explain(image)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> "SampDetox":
        """The same transform, sharing the network, for images normalised with ``mean`` and ``std``."""
        other = copy.copy(self)
        other.normalisation = check_normalisation(mean, std)
        return other

    def with_trigger(self, trigger: Any) -> "SampDetox":
        """The same transform, sharing the networks, which takes ``trigger`` out first, as above; None takes none."""
        other = copy.copy(self)
        other.triggers = as_triggers(trigger)
        return other

    def calibrate(self, images: Any, *, false_alarm_rate: float = 0.05, data: str = "") -> Calibrations:
        """Set the thresholds of the search by clean images, so that this share of them is taken for triggered ones.

        Images with a shorter side up to 48 pixels, below 160, and larger ones have thresholds of their own; those that
        no image is given for stay.

        Args:
            images: a batch, or an iterable of images or batches, of the kinds and ranges that a call takes.
            false_alarm_rate: in (0, 1); 1 divided by it is the least number of images of a size, 2 of small ones.
            data: what they are, in words, kept with the thresholds.

        Returns:
            The calibration, from now on in use here (``self.calibration``; save it, or hand it to another).

        Raises:
            ValueError: a preset without a search, too few images, a rate outside (0, 1), or what a call refuses.
        """
        if self.restorer is None or self.calibration is None:
            raise ValueError(
                "only preset='restore' (the default) has thresholds to calibrate, got another. Build SampDetox with it."
            )
        batches = [images] if isinstance(images, IMAGE_TYPES) or is_pure_tensor(images) else images
        by_networks: dict[str, list[Tensor]] = {}
        for x in self._core_batches(batches):
            by_networks.setdefault(self.restorer.of(x).name, []).append(x)
        found = self.calibration
        for name, parts in (by_networks or {"small": []}).items():
            networks = getattr(self.restorer, name)
            found = found.having(name, calibrate(networks, parts, false_alarm_rate=false_alarm_rate, data=data))
        self.calibration, self.watch = found, Watch(far=False)
        return found

    def _core_batches(self, batches: Iterable[Any]) -> Iterator[Tensor]:
        for image in batches:
            self.check_inputs([image])
            yield from self._core_images(image)[1].split(self.batch_size)

    def _core_images(self, inpt: Any) -> tuple[Tensor, Tensor]:
        """The input as a tensor, and on the device in the core's form."""
        tensor = as_tensor(inpt)
        return tensor, to_core(tensor.to(self._compute_device(tensor)), self.normalisation, self.denoiser.channels)

    def _purify(self, x0: Tensor) -> Purified:
        return without_triggers(self.triggers, x0, self, self._look) if self.triggers else self._look(x0)

    def _look(self, x0: Tensor, matched: Tensor | None = None) -> Purified:
        noise = fresh_noise if self.seed is None else SeededNoise(x0, self.seed, PASS.get())
        denoiser = on_schedule(self.denoiser, self.denoiser.schedule, self.schedule)
        if self.restorer is None or self.calibration is None:
            return self.settings.run(x0, denoiser, self.schedule, noise=noise)  # pyright: ignore[reportCallIssue]
        search: Any = {"networks": self.restorer.of(x0), "calibrations": self.calibration, "matched": matched}
        result = self.settings.run(x0, denoiser, self.schedule, noise=noise, **search)
        return self.watch.see(x0, result, self.calibration.of(search["networks"]).false_alarm_rate)

    def _explain(self, inpt: Any) -> Explanation:
        tensor, x0 = self._core_images(inpt)
        if len(x0):
            result = joined([self._purify(chunk) for chunk in x0.split(self.batch_size)])
        else:
            result = nothing_done(x0, self.settings, self.schedule, bool(self.triggers))
        return explanation_of(result, self.schedule, self.normalisation, inpt, tensor)

    @property
    def device(self) -> torch.device | None:
        """Where it computes; None where that follows the images."""
        return self.denoiser.device or self._device

    def _compute_device(self, tensor: Tensor) -> torch.device:
        own = self.device or tensor.device
        if self._device is None and own.type == "cpu" and tensor.device.type != "cpu":
            self.to(tensor.device)
            return tensor.device
        return own
