"""The public classes: ``SampDetox``, a transform, and ``DetoxWrapper``, a classifier with the transform before it.

Everything about input kinds, value ranges, devices and seeds is here; the method itself is in ``sampdetox.py``.
"""

import copy
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from sampdetox_transforms.method.calibration import Calibration, calibrate
from sampdetox_transforms.method.noise import SeededNoise, fresh_noise
from sampdetox_transforms.method.sampdetox import Purified, on_schedule
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.catalogue import DetoxWeights, load_denoiser
from sampdetox_transforms.networks.precision import fastest_dtype, set_precision
from sampdetox_transforms.networks.restorer_files import load_restorer
from sampdetox_transforms.transforms.explanation import Explanation
from sampdetox_transforms.transforms.images import (
    IMAGE_TYPES,
    PIL_MODES,
    check_device,
    check_normalisation,
    is_pure_tensor,
)
from sampdetox_transforms.transforms.presets import DEFAULT, Preset, get_preset

CPU = torch.device("cpu")


class SampDetox(v2.Transform):
    """Take backdoor triggers out of images (SampDetox, NeurIPS 2024, and past it), without access to a classifier.

    Takes PIL images (L or RGB), ``tv_tensors.Image`` and ``Video``, and tensors: uint8, or float in [0, 1], of shape
    (c, h, w) or (n, c, h, w) or with more leading dimensions, c = 1 or 3, any height and width. The result has the
    type, dtype, device and value range of the input. In a sample of several things, torchvision's rule holds: all
    explicit images are purified, or else the first pure tensor; labels, masks and boxes pass through.

    Args:
        weights: a ``DetoxWeights`` member or its name ("bundled" needs no network), ``"user/repo[@revision]"`` on the
            Hub, a folder in diffusers' format, a (network, schedule) pair, or a ``Denoiser``.
        preset: "restore" (``restoration.py``: triggers are looked for and filled), "ddim" (Algorithm 1 in 7 network
            calls), "paper", "paper-linear", "authors-code", or a ``Preset``. The settings below change it where given.
        t1: noise level of the global stage (faint triggers); the paper's is 20.
        t2: highest noise level of the local stage (visible triggers); the paper's is 120.
        sampler: "ddim" or "ddpm".
        stride: levels between two network calls; 20 is the paper's speed-up pace. DDPM walks every level: give 1.
        eta: DDIM's stochasticity in [0, 1].
        schedule: what the levels mean: "linear", "scaled_linear" or "cosine" (presets: mostly the network's own).
        map, window, data_range, direction, normalisation, scale, variance_type: see ``Preset``; "restore" has no map.
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
        sample without an image and for dtypes that are not images'.
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
        eta: float | None = None,
        schedule: str | None = None,
        map: str | None = None,
        window: str | None = None,
        data_range: float | None = None,
        direction: str | None = None,
        normalisation: str | None = None,
        scale: float | None = None,
        variance_type: str | None = None,
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
        given = {
            "schedule": schedule,
            "t1": t1,
            "t2": t2,
            "sampler": sampler,
            "stride": stride,
            "eta": eta,
            "map": map,
            "window": window,
            "data_range": data_range,
            "direction": direction,
            "normalisation": normalisation,
            "scale": scale,
            "variance_type": variance_type,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        self.settings = replace(get_preset(preset), **changes)
        self.normalisation = check_normalisation(mean, std)
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise ValueError(f"batch_size must be a whole number of 1 or more, got {batch_size}. Leave it out for 64.")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be a whole number or None, got {seed!r}. None draws fresh noise each call.")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point dtype, got {dtype}. torch.bfloat16 is the fast one.")
        self.batch_size, self.seed = batch_size or 64, seed
        target = check_device(device)
        denoiser = load_denoiser(weights, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
        if denoiser is weights and dtype not in (None, denoiser.dtype):
            denoiser = copy.deepcopy(denoiser)  # the one that was handed over stays as it is
        self._fastest = dtype is None and isinstance(weights, (str, os.PathLike, DetoxWeights))
        self.denoiser = denoiser
        name = self.settings.schedule
        self.schedule = self.denoiser.schedule if name is None else Schedule.named(name)
        self._check_levels()
        self.restorer, self.calibration = None, None
        if self.settings.local_stage == "restore":
            self.restorer, self.calibration = load_restorer()
        self._set_precision(fastest_dtype(denoiser.device or CPU) if self._fastest else dtype)
        if target is not None:
            self.to(target)
        self._device = target

    def __repr__(self) -> str:
        s = self.settings
        text = f"weights={self.denoiser.source!r}, t1={s.t1}, t2={s.t2}, sampler={s.sampler!r}, stride={s.stride}"
        second = f"local_stage={s.local_stage!r}" if s.local_stage == "restore" else f"map={s.map!r}"
        return f"SampDetox({text}, {second}, schedule={self.schedule.name!r}, seed={self.seed})"

    def extra_repr(self) -> str:
        return ""

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
        images = [item for item in flat_inputs if isinstance(item, IMAGE_TYPES)]
        pure = [item for item in flat_inputs if is_pure_tensor(item)]
        if not images:
            if not pure:
                kinds = sorted({type(item).__name__ for item in flat_inputs})
                raise TypeError(
                    "a sample must hold an image (PIL, tv_tensors.Image or a tensor), got "
                    f"{', '.join(kinds) or 'nothing'}. Convert arrays with v2.ToImage() before this transform."
                )
            images, others = pure[:1], pure[1:]
        else:
            others = []
        for image in images:
            self._check_image(image)
        for other in others:
            if other.ndim > 2 and other.shape[-3] == 3 and (other.dtype == torch.uint8 or other.is_floating_point()):
                raise ValueError(
                    "only the first pure tensor of a sample is taken for an image (torchvision's rule), got a second "
                    f"one of shape {tuple(other.shape)}. Stack the images, or wrap each in tv_tensors.Image."
                )
        self._check_worker(images)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Purify one image or batch; masks, boxes and the like are returned as they are."""
        if not isinstance(inpt, IMAGE_TYPES) and not is_pure_tensor(inpt):
            return inpt
        return self._image(inpt, pass_index=0)

    def explain(self, image: Any) -> Explanation:
        """Purify one image or batch and say what was done; raises what a call raises."""
        self.check_inputs([image])
        return self._run(image, pass_index=0)

    def explain_pass(self, image: Any, pass_index: int) -> Explanation:
        """``explain`` with the noise of another pass: with a seed, each ``pass_index`` draws its own noise."""
        self.check_inputs([image])
        return self._run(image, pass_index)

    def purify_pass(self, image: Any, pass_index: int) -> Any:
        """Purify with the noise of another pass."""
        self.check_inputs([image])
        return self._image(image, pass_index)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> "SampDetox":
        """The same transform, sharing the network, for images normalised with ``mean`` and ``std``."""
        other = copy.copy(self)
        other.normalisation = check_normalisation(mean, std)
        return other

    def calibrate(self, images: Any, *, false_alarm_rate: float = 0.05, data: str = "") -> Calibration:
        """Set the thresholds of the search by clean images, so that this share of them is taken for triggered ones.

        Args:
            images: a batch, or an iterable of images or batches, of the kinds and ranges that a call takes.
            false_alarm_rate: in (0, 1); 2 divided by it is the least number of images.
            data: what they are, in words, kept with the thresholds.

        Returns:
            The calibration, from now on in use here (``self.calibration``; keep it with ``save_calibration``).

        Raises:
            ValueError: a preset without a search, too few images, a rate outside (0, 1), or what a call refuses.
        """
        if self.restorer is None:
            raise ValueError(
                "only preset='restore' (the default) has thresholds to calibrate, got another. Build SampDetox with it."
            )
        batches = [images] if isinstance(images, IMAGE_TYPES) or is_pure_tensor(images) else images
        self.calibration = calibrate(
            self.restorer, self._core_batches(batches), false_alarm_rate=false_alarm_rate, data=data
        )
        return self.calibration

    def _core_batches(self, batches: Iterable[Any]) -> Iterator[Tensor]:
        for image in batches:
            self.check_inputs([image])
            yield from self._core_images(image)[1].split(self.batch_size)

    def _image(self, inpt: Any, pass_index: int) -> Any:
        """The result alone: nothing else is kept of a batch once the next one runs."""
        tensor, x0, channels = self._core_images(inpt)
        results = [self._purify(chunk, pass_index).image for chunk in x0.split(self.batch_size) if len(chunk)]
        return self._from_core(torch.cat(results) if results else x0, channels, inpt, tensor)

    def _core_images(self, inpt: Any) -> tuple[Tensor, Tensor, int]:
        """The input as a tensor, on the device and in the core's form, and its channels."""
        tensor = functional.pil_to_tensor(inpt) if isinstance(inpt, PIL.Image.Image) else inpt.as_subclass(Tensor)
        return tensor, *self._to_core(tensor.to(self._compute_device(tensor)))

    def _run(self, inpt: Any, pass_index: int) -> Explanation:
        tensor, x0, channels = self._core_images(inpt)
        if len(x0):
            chunks = [self._purify(chunk, pass_index) for chunk in x0.split(self.batch_size)]
            result = Purified(*(_join(values) for values in zip(*(vars(c).values() for c in chunks), strict=True)))
        else:
            empty = x0.new_zeros((0, 1, *x0.shape[2:]), dtype=torch.float64)
            sigma1, sigma2 = (float(self.schedule.sigma(level)) for level in (self.settings.t1, self.settings.t2))
            result = Purified(x0, x0, empty, empty, torch.zeros(0, dtype=torch.long), sigma1, sigma2)
            if self.restorer is not None:
                result = replace(result, mask=empty.bool(), suspicion=x0.new_zeros(0), clean_share=x0.new_zeros(0))

        lead = tensor.shape[:-3]
        planes = max(1, len(x0) // max(1, lead.numel()))  # 3 where a grey network took the colours one by one

        def shaped(values: Tensor) -> Tensor:
            values = values.unflatten(0, (len(x0) // planes, planes)).amax(1) if planes > 1 else values
            return values.reshape((*lead, *values.shape[1:])).to(tensor.device)

        def restored(x: Tensor) -> Any:
            return self._from_core(x, channels, inpt, tensor)

        calls = result.network_calls.unflatten(0, (len(x0) // planes, planes)).sum(1)
        return Explanation(
            image=restored(result.image),
            stage1=restored(result.stage1),
            ssim_map=shaped(result.ssim_map),
            timestep_map=shaped(result.timestep_map),
            sigma_map=shaped(self.schedule.sigma(result.timestep_map)),
            network_calls=calls.reshape(lead),
            sigma1=result.sigma1,
            sigma2=result.sigma2,
            mask=None if result.mask is None else shaped(result.mask),
            suspicion=None if result.suspicion is None else shaped(result.suspicion),
            false_alarm_rate=None if result.clean_share is None else 1 - shaped(1 - result.clean_share),
        )

    def _purify(self, x0: Tensor, pass_index: int) -> Purified:
        noise = fresh_noise if self.seed is None else SeededNoise(x0, self.seed, pass_index)
        denoiser = on_schedule(self.denoiser, self.denoiser.schedule, self.schedule)
        search = {} if self.restorer is None else {"restorer": self.restorer, "calibration": self.calibration}
        return self.settings.algorithm()(x0, denoiser, self.schedule, noise=noise, **search)

    def _to_core(self, tensor: Tensor) -> tuple[Tensor, int]:
        """(..., c, h, w) in the input's range -> (n, channels of the network, h, w) in [-1, 1], and c."""
        x = tensor.flatten(0, -4) if tensor.ndim > 3 else tensor[None]
        if tensor.dtype == torch.uint8:
            x = x.float() / 255
        else:
            x = x.float()
            if self.normalisation is not None:
                x = self.normalisation.undo(x).clamp(0, 1)
        x = x * 2 - 1
        channels, wanted = x.shape[1], self.denoiser.channels
        if channels < wanted:
            x = x.expand(-1, wanted, -1, -1)
        elif channels > wanted:
            x = x.flatten(0, 1)[:, None]
        return x, channels

    def _from_core(self, x: Tensor, channels: int, inpt: Any, tensor: Tensor) -> Any:
        """The inverse of ``_to_core``: the input's shape, range, dtype, device and type."""
        wanted = x.shape[1]
        if channels < wanted:
            x = x.mean(dim=1, keepdim=True)
        elif channels > wanted:
            x = x[:, 0].unflatten(0, (-1, channels))
        x = ((x + 1) / 2).clamp(0, 1).reshape(tensor.shape)
        if tensor.dtype == torch.uint8:
            x = (x * 255).round().to(torch.uint8)
        elif self.normalisation is not None:
            x = self.normalisation.redo(x)
        x = x.to(tensor.device, tensor.dtype)
        if isinstance(inpt, PIL.Image.Image):
            return functional.to_pil_image(x, mode=inpt.mode)
        if isinstance(inpt, tv_tensors.TVTensor):
            return tv_tensors.wrap(x, like=inpt)  # pyright: ignore[reportCallIssue]
        return x

    def _compute_device(self, tensor: Tensor) -> torch.device:
        own = self.denoiser.device or self._device or tensor.device
        if self._device is None and own.type == "cpu" and tensor.device.type != "cpu":
            self.to(tensor.device)
            return tensor.device
        return own

    def _check_worker(self, images: list[Any]) -> None:
        if get_worker_info() is None:
            return
        devices = [self.denoiser.device] + [image.device for image in images if isinstance(image, Tensor)]
        # None for a process of the default context, which is how a loader without multiprocessing_context starts it
        method = getattr(multiprocessing.current_process(), "_start_method", None) or multiprocessing.get_start_method()
        if method == "fork" and any(device is not None and device.type == "cuda" for device in devices):
            raise RuntimeError(
                "CUDA cannot be used in a forked DataLoader worker, got SampDetox on a CUDA device in one. Apply it "
                "after the loader, wrap the classifier in DetoxWrapper, give the loader "
                "multiprocessing_context='spawn', or use device='cpu'."
            )

    def _check_image(self, image: Any) -> None:
        if isinstance(image, PIL.Image.Image):
            if image.mode not in PIL_MODES:
                raise ValueError(
                    f"PIL images must have one of the modes {PIL_MODES}, got {image.mode!r}. "
                    "Use image.convert('RGB'); keep an alpha channel aside and put it back."
                )
            if self.normalisation is not None:
                raise TypeError("with mean and std images must be float tensors, got PIL. Leave mean and std out.")
            if image.width == 0 or image.height == 0:
                raise ValueError(f"images must have a pixel at least, got {image.width}x{image.height}. Leave it out.")
            return
        shape = tuple(image.shape)
        if image.ndim < 3:
            hint = "Is it the labels? Put the image first." if image.ndim < 2 else "Add a channel: image[None]."
            raise ValueError(f"images must have the shape (..., c, h, w), got {shape} of {image.dtype}. {hint}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(
                f"image tensors must be uint8, or floating-point in [0, 1], got {image.dtype}. "
                "Convert with v2.ToDtype(torch.float32, scale=True). Labels go after the image."
            )
        if shape[-3] not in (1, 3):
            raise ValueError(
                f"images must have 1 or 3 channels, in the third dimension from the end, got shape {shape}. "
                "Permute (h, w, c) arrays; drop alpha channels."
            )
        if 0 in shape[-2:]:
            raise ValueError(f"images must have a pixel at least, got shape {shape}. Leave empty images out.")
        if image.dtype == torch.uint8:
            if self.normalisation is not None:
                raise TypeError("with mean and std images must be float tensors, got uint8. Leave mean and std out.")
        elif image.numel():
            self._check_range(image.detach().as_subclass(Tensor))

    def _check_range(self, image: Tensor) -> None:
        slack = 1e-5  # what rounding leaves over
        hint = "After Normalize? Give its mean= and std=. In 0...255? Keep uint8, or divide by 255."
        if self.normalisation is not None:
            self.normalisation.check_channels(image.shape[-3])
            image, slack, hint = self.normalisation.undo(image.float()), 1e-2, "Do mean and std fit the data?"
        low, high = image.amin().item(), image.amax().item()
        if low != low:
            raise ValueError("images must hold finite numbers, got NaN. Find where it comes from before this.")
        if not (low >= -slack and high <= 1 + slack):
            raise ValueError(f"float images must be in [0, 1], got values in [{low:.4g}, {high:.4g}]. {hint}")

    def _check_levels(self) -> None:
        needed, network = self.settings.highest_level, self.denoiser
        known = float(network.schedule.sigma(network.max_level))
        own = float(self.schedule.level(min(known, float(self.schedule.sigma(self.schedule.num_levels)))))
        limit = int(own + 1e-6)
        if needed > own + 1e-6:
            extra = ", one more than t for the authors' code" if self.settings.gate == "authors-code" else ""
            raise ValueError(
                f"t1 and t2 must be in [0, {limit}] on the {self.schedule.name} schedule for the weights "
                f"{network.source!r}, which know noise up to sigma {known:.3g}, got t1={self.settings.t1}, "
                f"t2={self.settings.t2} (level {needed:g} is needed{extra}). Lower them, or use weights that know more."
            )


def _join(values: Sequence) -> Any:
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else values[0]
