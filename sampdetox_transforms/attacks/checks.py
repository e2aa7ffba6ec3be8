"""The check of images that all attacks share."""

from torch import Tensor


def check_images(images: Tensor, name: str = "images") -> None:
    """Refuse all but finite floating-point tensors (..., c, h, w) in [0, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {kind}. Use v2.ToDtype(torch.float32, scale=True)."
        )
    if images.ndim < 3 or 0 in images.shape[-3:]:
        raise ValueError(f"{name} must have the shape (..., c, h, w), got {tuple(images.shape)}. Is a channel missing?")
    if not bool(((images >= 0) & (images <= 1)).all()):  # NaN fails both
        raise ValueError(
            f"{name} must be in [0, 1], got values from {images.min():.4g} to {images.max():.4g}. "
            "Attacks come before Normalize; divide 8-bit images by 255."
        )
