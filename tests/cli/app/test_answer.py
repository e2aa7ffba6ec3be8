"""The functions behind the app, without a server or a browser."""

import io

import numpy as np
import pytest
from PIL import Image

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli.app.answer import clean, facts, verdict
from sampdetox_transforms.lab.demo.photographs import FOLDER, photograph


@pytest.fixture(scope="module")
def detox() -> SampDetox:
    return SampDetox("bundled", seed=0)


def as_file(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_a_planted_square_is_found_where_it_is(detox):
    answer = clean((FOLDER / "chelsea.jpg").read_bytes(), detox, trigger="white square")
    before, after, mask = (np.asarray(opened(part)) for part in (answer.before, answer.after, answer.mask))
    own = np.abs(before - (photograph("chelsea").numpy() * 255).transpose(1, 2, 0)).max(axis=2) > 1.5
    found = mask[..., 3] > 0
    assert before.shape == after.shape == (256, 256, 3) and mask.shape == (256, 256, 4)
    assert own.sum() > 1000 and (found & own).sum() / own.sum() > 0.9 and (found & ~own).mean() < 0.02
    assert answer.numbers["found"] and "found" in answer.verdict and "region" in answer.facts["Found"]
    assert not answer.warning


def test_another_seed_plants_it_elsewhere(detox):
    content = as_file(np.full((32, 32, 3), 120, np.uint8))
    one, again, other = (clean(content, detox, trigger="white square", seed=seed).before for seed in (1, 1, 2))
    assert one == again != other


def test_a_clean_picture_passes_lightly(detox):
    answer = clean((FOLDER / "chelsea.jpg").read_bytes(), detox)
    assert not answer.numbers["found"] and answer.verdict.startswith("Nothing was found")
    assert not np.asarray(opened(answer.mask))[..., 3].any()
    assert answer.numbers["calls"] > 0 and answer.numbers["level"] > 0


def test_transparency_and_grey_are_kept(detox):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    answer = clean(as_file(array), detox)
    result = opened(answer.after)
    assert result.mode == "RGBA" and (np.asarray(result)[..., 3] == array[..., 3]).all()
    assert opened(clean(as_file(array[..., 0]), detox).after).mode == "L"


def test_a_drawing_gets_a_warning(detox):
    answer = clean(as_file(np.full((224, 224, 3), 255, np.uint8)), detox)
    assert "sampdetox calibrate" in answer.warning


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (b"", {}, "cannot be read"),
        (b"no picture", {}, "not a picture of a known kind"),
        (as_file(np.zeros((64, 64, 3), np.uint8), "JPEG")[:300], {}, "cannot be read"),
        (as_file(np.zeros((64, 64, 3), np.uint8)), {"max_pixels": 4000}, "4000 pixels or fewer"),
        (as_file(np.zeros((64, 64, 3), np.uint8)), {"trigger": "no such"}, "trigger"),
        (as_file(np.zeros((8, 64, 3), np.uint8)), {"trigger": "white square"}, "16 pixels"),
    ],
)
def test_what_cannot_be_purified_is_refused_with_a_reason(detox, content, options, reason):
    with pytest.raises(ValueError, match=reason):
        clean(content, detox, **options)


def test_words_for_numbers():
    base = {"level": 120.0, "noise": 30.0, "calls": 9, "seconds": 1.5}
    assert "do not search" in verdict(base) and "Found" not in facts(base)
    found = {"p_value": 0.01, "mask": 0.0, "dense": True, "waves": False, "retouched": "", "found": True}
    dense = {**base, **found}
    assert "all over" in verdict(dense) and facts(dense)["Found"] == "a pattern all over it"
    waves = {**dense, "dense": False, "waves": True, "retouched": "wave taken out"}
    assert "all over" in verdict(waves) and facts(waves)["Retouched"] == "wave taken out"
    assert facts(dense)["Suspicion"].startswith("1.0%") and "120" in facts(dense)["Level"]
