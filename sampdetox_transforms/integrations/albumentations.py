"""``Purify``: SampDetox in a pipeline of albumentations."""

from typing import Any

from albumentations import ImageOnlyTransform  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray

from sampdetox_transforms.transforms.arrays import DetoxArrays
from sampdetox_transforms.transforms.transform import SampDetox


class Purify(ImageOnlyTransform):  # pyright: ignore[reportGeneralTypeIssues]
    """Purify the image of a sample; masks, boxes and keypoints pass through.

    Put it first: before ``Normalize``, and before what crops or resizes, which would bend a trigger.

    Args:
        detox: a ``SampDetox``; None makes one with the default weights.
        p: how often; 1 purifies every image.

    Images are (h, w) or (h, w, c), c = 1 or 3, uint8 or float32 in [0, 1]; errors are those of ``DetoxArrays``. The
    noise comes from the seed of ``detox``, not from that of the pipeline.
    """

    class InitSchema(ImageOnlyTransform.InitSchema):  # pyright: ignore[reportAttributeAccessIssue]
        """What albumentations checks: ``detox`` may be any object here."""

        detox: Any = None

    def __init__(self, detox: SampDetox | None = None, p: float = 1.0):
        super().__init__(p=p)
        self.purify = DetoxArrays(detox)

    def apply(self, img: NDArray[Any], *args: Any, **params: Any) -> NDArray[Any]:
        return self.purify(img)

    def to_dict_private(self) -> dict[str, Any]:
        """Refused: a pipeline that is saved would lack the networks."""
        raise NotImplementedError("a pipeline with Purify cannot be saved, got to_dict. Build it in code.")
