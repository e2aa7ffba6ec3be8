"""SampDetox over a data set of Hugging Face, and inside an image-classification pipeline.

python examples/with_hugging_face.py
"""

from typing import Any

from datasets import Dataset, Features, Image
from PIL import Image as Pictures
from transformers import ImageClassificationPipeline, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.image_utils import load_image

from sampdetox_transforms import SampDetox


def purify_dataset(data: Dataset, detox: SampDetox, column: str = "image") -> Dataset:
    """The data set with a column of pictures purified, once and for all; they are stored without loss."""
    return data.map(lambda row: {column: detox(row[column].convert("RGB"))})


class PurifyingPipeline(ImageClassificationPipeline):
    """Made by ``pipeline("image-classification", ..., pipeline_class=PurifyingPipeline)``; then set ``detox``."""

    detox: SampDetox

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:
        return super().preprocess(self.detox(load_image(image, timeout=timeout).convert("RGB")))


def tiny_pipeline(detox: SampDetox) -> PurifyingPipeline:
    """A pipeline with random weights, in place of a model from the Hub."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    pipe = PurifyingPipeline(model=model, image_processor=processor)
    pipe.detox = detox
    return pipe


if __name__ == "__main__":
    detox = SampDetox("bundled", seed=0)
    pictures = [Pictures.new("RGB", (32, 32), colour) for colour in ("red", "gray")]
    data = Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))
    print(purify_dataset(data, detox))
    print(tiny_pipeline(detox)(pictures[0]))
