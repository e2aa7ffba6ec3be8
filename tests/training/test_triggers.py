"""Training triggers: what they may touch, what they say they touched, any size, one generator."""

import pytest
import torch
from PIL import Image

from sampdetox_transforms.method.search import dilate
from sampdetox_transforms.training.triggers import photographs
from sampdetox_transforms.training.triggers.contents import CONTENTS
from sampdetox_transforms.training.triggers.dense import DENSE, dense_triggers, grey_details
from sampdetox_transforms.training.triggers.draw import mixture
from sampdetox_transforms.training.triggers.local import HOLES, erasures, local_triggers
from sampdetox_transforms.training.triggers.pictures import Pictures, mixed
from sampdetox_transforms.training.triggers.shapes import SHAPES, place

EVERY_SHAPE = {
    getattr(shape, "func", shape).__name__ + str(i): shape for i, (shape, _) in enumerate(photographs.SHAPES)
}
EVERY_CONTENT = {content.__name__: content for content, _ in (*CONTENTS, *photographs.CONTENTS)}
SIZES = [(32, 32), (17, 40), (64, 64)]


def images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", SIZES)
def test_local_triggers_change_their_region_and_nothing_far_from_it(size):
    x = images(96, *size)
    before = x.clone()
    y, region = local_triggers(x, seeded())
    assert torch.equal(x, before)
    assert y.shape == x.shape and region.shape == (96, 1, *size) and region.dtype == torch.bool
    assert float(y.amin()) >= 0 and float(y.amax()) <= 1
    changed = (y != x).any(dim=1, keepdim=True)
    assert not (changed & ~dilate(region, 1)).any()
    covered = region.float().mean(dim=(1, 2, 3))
    assert (covered > 0).float().mean() > 0.95
    assert 0.01 < float(covered.median()) < 0.1  # small, mostly
    assert float((changed & region).sum() / region.sum()) > 0.8


@pytest.mark.parametrize("size", SIZES)
def test_dense_triggers_change_the_whole_image(size):
    x = images(96, *size)
    before = x.clone()
    y = dense_triggers(x, seeded())
    assert torch.equal(x, before) and y.shape == x.shape
    assert float(y.amin()) >= 0 and float(y.amax()) <= 1
    assert float(((y - x).abs() > 1e-4).any(dim=1).float().mean(dim=(1, 2)).quantile(0.1)) > 0.5


@pytest.mark.parametrize("size", SIZES)
def test_every_shape_is_a_region_and_leaves_something_of_the_image(size):
    x = images(64, *size)
    for name, shape in EVERY_SHAPE.items():
        region = shape(x, x, seeded())
        assert region.shape == (64, 1, *size), name
        assert set(region.unique().tolist()) <= {0.0, 1.0}, name
        covered = region.mean(dim=(1, 2, 3))
        assert (covered > 0).float().mean() > 0.8, name
        assert float(covered.quantile(0.9)) < 0.7, name
        assert len(torch.unique(region, dim=0)) > 10, f"{name} must differ from image to image"


@pytest.mark.parametrize("size", SIZES)
def test_every_content_is_an_image(size):
    x = images(64, *size)
    for name, content in EVERY_CONTENT.items():
        values = content(x, x, seeded())
        assert values.shape == x.shape and not values.isnan().any(), name
        assert float(values.amin()) >= -1e-6 and float(values.amax()) <= 1 + 1e-6, name


def test_a_few_of_each_and_one_alone():
    for n in (1, 2):
        x = images(n, 32, 32)
        assert local_triggers(x, seeded(n))[0].shape == dense_triggers(x, seeded(n)).shape == x.shape
        assert erasures(x, seeded()).shape == (n, 1, 32, 32)
        for part, _ in (*photographs.SHAPES, *photographs.CONTENTS, *DENSE):
            assert len(part(x, x, seeded())) == n


def test_holes_are_larger_than_the_shapes_of_triggers():
    x = images(600, 32, 32)
    holes = mixture(HOLES, x, seeded())
    hole, shape = (region.mean(dim=(1, 2, 3)) for region in (holes, mixture(SHAPES, x, seeded())))
    assert sum(weight for _, weight in HOLES) == pytest.approx(1)
    assert float(hole.quantile(0.9)) > 1.25 * float(shape.quantile(0.9))
    assert erasures(x, seeded())[holes > 0].all()  # these, grown


def test_the_generator_decides():
    x = images(16, 32, 32)
    for function in (lambda *args: local_triggers(*args)[0], dense_triggers, erasures):
        first, again, other = (function(x, seeded(s)) for s in (3, 3, 4))
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_grey_details_are_grey_fine_and_as_strong_as_the_images_contrast_allows():
    x = torch.nn.functional.interpolate(images(64, 8, 8), size=(32, 32), mode="bicubic").clamp(0, 1)
    x = 0.5 + 0.8 * (x - 0.5)
    changed = grey_details(x, x, seeded()) - x
    assert torch.allclose(changed, changed[:, :1].expand_as(changed), atol=1e-6)
    strength = 255 * changed.std(dim=(1, 2, 3))
    assert 2.5 < float(strength.min()) < 6 and 10 < float(strength.max()) < 14.5
    smooth = torch.nn.functional.avg_pool2d(changed, 8)
    assert float(smooth.square().mean()) < 0.02 * float(changed.square().mean())
    dark = 0.02 * x
    assert float((grey_details(dark, dark, seeded()) - dark).std()) < 2 / 255


def test_weights_are_shares():
    for table in (SHAPES, CONTENTS, DENSE, photographs.SHAPES, photographs.CONTENTS, photographs.DENSE):
        assert sum(weight for _, weight in table) == pytest.approx(1)


def test_other_tables_give_other_triggers():
    x = torch.full((40, 3, 96, 96), 0.5)
    white = [(lambda images, every, generator: torch.ones_like(images), 1.0)]
    all_over = [(lambda images, every, generator: torch.ones_like(images[:, :1]), 1.0)]
    y, region = local_triggers(x, seeded(), all_over, white)
    assert region.all() and float(y.mean()) > 0.8
    turned = photographs.turned_rectangles(x, x, seeded())
    widest = turned.sum(dim=3).amax(dim=2) / turned.sum(dim=3).clamp(min=1).masked_fill(
        turned.sum(dim=3) == 0, 99
    ).amin(2)
    assert (widest > 1.5).float().mean() > 0.5  # rows of a rectangle along the axes are equally wide


def test_mixture_gives_each_image_its_own_function():
    x = images(200, 4, 4)
    functions = [
        (lambda part, every, generator, v=v: torch.full_like(part, v), w) for v, w in ((1.0, 0.25), (2.0, 0.75))
    ]
    result = mixture(functions, x, seeded())
    assert (result == result[:, :1, :1, :1]).all()
    assert 0.15 < float((result[:, 0, 0, 0] == 1).float().mean()) < 0.35


def test_a_quarter_of_the_boxes_touches_both_borders_of_a_corner_and_none_leaves_the_image():
    x, side = torch.zeros(4000, 3, 32, 40), torch.full((4000, 1, 1, 1), 4.0)
    top, left = place(x, side, side, seeded())
    assert float(top.min()) == float(left.min()) == 0 and float(top.max()) == 28 and float(left.max()) == 36
    in_corner = ((top == 0) | (top == 28)) & ((left == 0) | (left == 36))
    # half near a corner, seven in ten of them at a border each way; of the others 4 of 29 * 37 places
    assert float(in_corner.float().mean()) == pytest.approx(0.5 * 0.7**2 + 0.5 * 4 / (29 * 37), abs=0.02)


@pytest.fixture
def pictures(tmp_path) -> Pictures:
    """Of black files, so that what is not black was drawn."""
    for i in range(3):
        Image.new("RGB", (50 + i, 40), "black").save(tmp_path / f"{i}.jpg")
    return Pictures((str(tmp_path),), 32)


def test_pictures_are_parts_of_the_files_and_as_many_drawings(pictures):
    x = pictures.draw(200, seeded())
    assert x.shape == (200, 3, 32, 32) and float(x.amin()) >= 0 and float(x.amax()) <= 1
    black = float((x.amax(dim=(1, 2, 3)) < 0.02).float().mean())
    assert 0.35 < black < 0.6
    assert torch.equal(x, pictures.draw(200, seeded())) and not torch.equal(x, pictures.draw(200, seeded(1)))


def test_pictures_are_mixed_in_by_8_to_35_percent(pictures, monkeypatch):
    white = torch.ones(300, 3, 32, 32)
    monkeypatch.setattr(pictures, "draw", lambda n, g: torch.zeros(n, 3, 32, 32))
    share = 1 - mixed(white, white, seeded(), pictures)
    assert torch.equal(share, share[:, :1, :1, :1].expand_as(share))
    assert 0.08 <= float(share.min()) < 0.09 and 0.34 < float(share.max()) <= 0.35


def test_a_fifth_of_dense_triggers_are_of_given_pictures(pictures, monkeypatch):
    asked = []
    monkeypatch.setattr(pictures, "draw", lambda n, g: asked.append(n) or torch.zeros(n, 3, 32, 32))
    x = images(1000, 32, 32)
    assert dense_triggers(x, seeded(), pictures).shape == x.shape
    assert 180 < sum(asked) < 260
    asked.clear()
    dense_triggers(x, seeded())
    assert not asked


def test_pictures_need_images(tmp_path):
    with pytest.raises(ValueError, match="must hold images"):
        Pictures((str(tmp_path),), 32)


def test_silhouettes_are_whole_curved_and_of_many_outlines():
    x = images(200, 64, 64)
    region = photographs.silhouettes(x, x, seeded())[:, 0] > 0
    assert len({tuple(r.flatten().tolist()) for r in region}) == 200
    for mask in region[:40]:
        rows, columns = mask.nonzero().unbind(1)
        box = (rows.amax() - rows.amin() + 1) * (columns.amax() - columns.amin() + 1)
        assert len(rows) < 0.95 * box  # no rectangle
        grown = torch.zeros_like(mask)
        grown[rows[0], columns[0]] = True
        for _ in range(64):
            grown = dilate(grown[None, None], 1)[0, 0] & mask
        assert torch.equal(grown, mask)  # in one piece


def test_labels_are_what_somebody_drew(monkeypatch):
    drawn, x = [], images(5, 32, 40)

    def draw(n, side, generator):
        drawn.append((n, side))
        return torch.full((n, 3, side, side), 0.25)

    monkeypatch.setattr(photographs, "draw_pictures", draw)
    assert torch.allclose(photographs.labels(x, x, seeded()), torch.full_like(x, 0.25))
    assert drawn == [(photographs.LABELS, 32)]


def test_greys_are_neither_black_nor_white_nor_coloured():
    x = images(300, 8, 8)
    y = photographs.greys(x, x, seeded())
    assert torch.equal(y, y[:, :1, :1, :1].expand_as(y))
    level = y[:, 0, 0, 0]
    assert 0.15 <= float(level.min()) < 0.2 and 0.8 < float(level.max()) <= 0.85
