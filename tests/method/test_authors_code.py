"""The authors' code: against its transcription, and the two settings that it leaves open."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import reference
import torch
from reference import DrawnNoise, toy_denoiser

from sampdetox_transforms.method.authors_code import AuthorsCode, purify_authors_code
from sampdetox_transforms.method.schedule import Schedule

LINEAR = Schedule.named("linear")


def random_images(*shape, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(("t1", "t2"), [(6, 6), (3, 8), (8, 3)])
@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (2, 3, 11, 13)])
def test_authors_code_equals_its_transcription(shape, t1, t2):
    x0 = random_images(*shape)
    noise = DrawnNoise(shape, calls=1 + t1 + t2)
    result = purify_authors_code(x0, toy_denoiser, LINEAR, t1=t1, t2=t2, noise=noise)
    betas = reference.linear_betas()
    image, stage1, mask = reference.authors_code(x0.numpy(), toy_denoiser, betas, t1=t1, t2=t2, draw=noise.arrays())
    np.testing.assert_allclose(result.stage1, stage1, atol=1e-9)
    np.testing.assert_array_equal(result.timestep_map[:, 0], mask)
    np.testing.assert_allclose(result.image, image, atol=1e-9)
    assert mask.max() == t2
    assert mask.min() == 0
    assert result.network_calls.tolist() == [t1 + t2] * len(x0)
    assert result.sigma1 == pytest.approx(float(LINEAR.sigma(t1 + 1)))


def test_authors_code_of_an_unchanged_image_has_no_nan():
    result = purify_authors_code(
        torch.zeros(1, 3, 12, 12), lambda x, t: torch.zeros_like(x), LINEAR, t1=2, t2=2, noise=torch.zeros_like
    )
    assert result.image.isfinite().all()
    assert result.timestep_map.isfinite().all()


def test_the_settings_run_with_their_levels():
    x0 = random_images(2, 3, 11, 12)
    noise = DrawnNoise(x0.shape, calls=12)
    result = AuthorsCode(t1=3, t2=5).run(x0, toy_denoiser, LINEAR, noise=noise)
    betas = reference.linear_betas()
    image = reference.authors_code(x0.numpy(), toy_denoiser, betas, t1=3, t2=5, draw=noise.arrays())[0]
    np.testing.assert_allclose(result.image, image, atol=1e-9)


def test_the_map_is_told_as_a_difference():
    x0 = random_images(2, 3, 11, 12)
    result = AuthorsCode(t1=3, t2=5).run(x0, toy_denoiser, LINEAR, noise=DrawnNoise(x0.shape, calls=12))
    assert result.found is None and result.lightened is None
    for difference, levels in zip(result.difference_map, result.timestep_map, strict=True):
        assert levels.flatten()[difference.argmax()] == levels.max() == 5
        assert levels.flatten()[difference.argmin()] == levels.min() == 0


def test_it_has_two_settings_and_the_schedule_is_fixed():
    assert [field.name for field in fields(AuthorsCode)] == ["t1", "t2"]
    settings = AuthorsCode()
    assert (settings.t1, settings.t2, settings.schedule, settings.highest_level) == (120, 120, "linear", 121)
    assert replace(settings, t1=10, t2=30).highest_level == 31
    with pytest.raises(FrozenInstanceError):
        settings.t1 = 3
    with pytest.raises(TypeError, match="schedule"):
        AuthorsCode(schedule="cosine")


def test_the_authors_levels_are_whole_numbers():
    with pytest.raises(ValueError, match=r"the authors' levels must be whole numbers, got 2\.5 and 120\. Round them"):
        AuthorsCode(t1=2.5)
    assert AuthorsCode(t1=2.0).run(torch.zeros(1, 1, 3, 3), toy_denoiser, LINEAR).network_calls.tolist() == [122]
