"""The check of images in [0, 1] that attacks and defenses share."""

from torch import Tensor


def check_images(images: Tensor, name: str = "images", *, slack: float = 0.0) -> None:
    """Refuse all but finite floating-point tensors (..., c, h, w) in [0, 1], give or take ``slack``."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {kind}. Use v2.ToDtype(torch.float32, scale=True)."
        )
    if images.ndim < 3 or 0 in images.shape[-3:]:
        raise ValueError(f"{name} must have the shape (..., c, h, w), got {tuple(images.shape)}. Is a channel missing?")
    if not bool(((images >= -slack) & (images <= 1 + slack)).all()):  # NaN fails both
        raise ValueError(
            f"{name} must be in [0, 1], got values from {images.min():.4g} to {images.max():.4g}. "
            "Attacks and defenses come before Normalize; divide 8-bit images by 255."
        )
