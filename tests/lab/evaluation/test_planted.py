"""Triggers at random places: their pixels, their places, and what they leave alone."""

import pytest
import torch

from sampdetox_transforms.lab.evaluation.planted import NAMES, planted_triggers, solid, somewhere, whole

SQUARES = ("white square", "black square", "red square", "noise square", "checkerboard", "drawn picture")


def plant(name, images, seed=0, data=None):
    return planted_triggers(data)[name].plant(images, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", [*SQUARES, "two at once"])
def test_alpha_says_which_pixels_changed(name, size):
    grey = torch.full((4, 3, size, size), 100 / 255)
    planted = plant(name, grey)
    changed = (planted.images != grey).any(dim=1, keepdim=True)
    assert bool((changed <= (planted.alpha > 0)).all())
    covered = float((planted.alpha > 0).float().mean())
    share = {"two at once": 0.04, "drawn picture": 0.04}.get(name, 0.02)
    assert 0.7 * share < covered < 1.4 * share
    assert float(changed.float().sum() / (planted.alpha > 0).sum()) > 0.9


def test_places_differ_between_images_and_repeat_with_the_seed():
    grey = torch.full((8, 3, 64, 64), 0.5)
    first, again, other = (plant("white square", grey, seed).alpha for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(a.nonzero()[0].tolist()) for a in first}) > 4


def test_two_patches_do_not_cover_each_other():
    patches = somewhere(solid(1.0, 1.0, 1.0), solid(0.0, 0.0, 0.0))
    planted = patches(torch.full((30, 3, 32, 32), 0.5), torch.Generator().manual_seed(3))
    whites, blacks = (planted.images == 1).all(1), (planted.images == 0).all(1)
    assert whites.sum(dim=(1, 2)).tolist() == blacks.sum(dim=(1, 2)).tolist() == [25] * 30


@pytest.mark.parametrize("name", ["sig", "noise pattern"])
def test_dense_triggers_have_no_place(name):
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    planted = plant(name, images)
    assert planted.alpha is None
    assert float((planted.images != whole(images)).float().mean()) > 0.5


def test_results_are_whole_255ths_in_range():
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    for name in (*SQUARES, "two at once", "sig", "noise pattern"):
        values = plant(name, images).images * 255
        assert float((values - values.round()).abs().max()) < 1e-4
        assert float(values.min()) >= 0 and float(values.max()) <= 255


def test_none_leaves_images_as_they_are():
    images = torch.rand(2, 3, 32, 32)
    assert plant("none", images).images is images and NAMES[0] == "none"


@pytest.mark.parametrize("name", ["natural object", "pasted photograph", "adversarial patch", "blend"])
def test_what_needs_a_file_says_so(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"SAMPDETOX_DATA must hold .*docs/data\.md"):
        plant(name, torch.rand(1, 3, 32, 32), data=tmp_path)


def test_what_needs_a_file_works_with_the_data(data_with_photographs):
    data = data_with_photographs
    images = torch.full((3, 3, 128, 128), 100 / 255)
    soft = plant("natural object", images, data=data)
    assert bool(((soft.alpha > 0) & (soft.alpha < 0.5)).any())
    assert 0.03 < float((soft.alpha >= 0.5).float().mean()) < 0.07
    pasted = plant("pasted photograph", images, data=data)
    assert set(pasted.alpha.unique().tolist()) == {0, 1} and 0.04 < float(pasted.alpha.mean()) < 0.06
    inside = pasted.alpha.expand_as(images) == 1
    assert torch.equal(pasted.images[~inside], images[~inside]) and float(pasted.images[inside].std()) > 0.02
    hard = plant("adversarial patch", images, data=data)
    assert 0.04 < float(hard.alpha.mean()) < 0.06
    assert plant("blend", images, data=data).alpha is None
    assert planted_triggers(data)["adversarial patch"].target() in range(1000)
