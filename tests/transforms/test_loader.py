"""DetoxLoader: what comes out of it is what ``detox`` makes of each batch, whatever the batch is."""

import copy
import pickle
import re
import sys
import types
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from sampdetox_transforms import SampDetox
from sampdetox_transforms.transforms.loader import DetoxLoader, image_places, one_ahead

Pair = namedtuple("Pair", "image label")


@pytest.fixture
def detox(tiny):
    return SampDetox(str(tiny), seed=0)


def pixels(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Dicts(Dataset):
    """Seven samples that are dicts, with a name, a label and a box beside the image."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> dict:
        return {"image": pixels(1, i)[0], "label": i, "name": f"{i}.png", "more": {"weight": torch.tensor(i / 7)}}


def assert_same(found, expected) -> None:
    """The same structure, types and values."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert found == expected


def test_it_gives_what_detox_makes_of_each_batch(detox):
    images, labels = pixels(7), torch.arange(7)
    plain = DataLoader(TensorDataset(images, labels), batch_size=3)
    loader = DetoxLoader(plain, detox)
    found = list(loader)
    assert len(loader) == len(plain) == len(found) == 3
    for batch, (x, y) in zip(found, plain, strict=True):
        assert_same(batch, [detox(x), y])
        assert not torch.equal(batch[0], x)
    assert torch.equal(torch.cat([y for _, y in found]), labels), "images were lost or reordered"
    torch.testing.assert_close(torch.cat([x for x, _ in found]), detox(images), atol=1e-4, rtol=0)


def test_dicts_keep_their_other_fields(detox):
    plain = DataLoader(Dicts(), batch_size=2)
    found = list(DetoxLoader(plain, detox))
    for batch, given in zip(found, plain, strict=True):
        assert_same(batch, {**given, "image": detox(given["image"])})
    assert [name for batch in found for name in batch["name"]] == [f"{i}.png" for i in range(7)]


def test_every_epoch_goes_through_the_loader_anew(detox):
    plain = DataLoader(TensorDataset(pixels(5), torch.arange(5)), batch_size=2, shuffle=True,
                       generator=torch.Generator().manual_seed(3))  # fmt: skip
    loader = DetoxLoader(plain, detox)
    orders = [torch.cat([y for _, y in loader]).tolist() for _ in range(3)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1, "the loader was not gone through anew"


def test_worker_processes_change_nothing(detox):
    expected = list(DetoxLoader(DataLoader(Dicts(), batch_size=3), detox))
    assert_same(list(DetoxLoader(DataLoader(Dicts(), batch_size=3, num_workers=2), detox)), expected)


def test_a_batch_may_be_anything_that_detox_takes(detox):
    x, mask = pixels(2), tv_tensors.Mask(torch.zeros(1, 8, 8, dtype=torch.uint8))
    picture = functional.to_pil_image(x[0])
    batches = [
        x,
        (x, "label"),
        [torch.arange(3), {"image": tv_tensors.Image(x), "mask": mask}],
        Pair(image=x, label=None),
        ((tv_tensors.Image(x[0]), tv_tensors.Image(x[1, :, :5])), ({"label": 1}, {"label": 2})),
        [tv_tensors.Video((x * 255).byte())],
    ]
    given = copy.deepcopy(batches)
    for found, batch in zip(DetoxLoader(batches, detox), batches, strict=True):
        assert_same(found, detox(batch))
    assert_same(batches, given)
    (found,) = DetoxLoader([[picture, 3]], detox)
    assert found[1] == 3 and functional.pil_to_tensor(found[0]).equal(functional.pil_to_tensor(detox(picture)))


def test_streams_without_a_length_and_old_style_sequences(detox):
    class Old:
        def __getitem__(self, i):
            if i == 2:
                raise IndexError
            return pixels(1, i)

    assert len(list(DetoxLoader(Old(), detox))) == 2  # pyright: ignore[reportArgumentType]
    stream = DetoxLoader((pixels(1, i) for i in range(2)), detox)
    with pytest.raises(TypeError, match="len"):
        len(stream)
    assert len(list(stream)) == 2


def test_other_attributes_are_the_loaders(detox):
    data = TensorDataset(pixels(5))
    loader = DetoxLoader(DataLoader(data, batch_size=2), detox)
    assert loader.dataset is data and loader.batch_size == 2
    with pytest.raises(AttributeError, match="nonsense"):
        _ = loader.nonsense
    for twin in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        assert_same(list(twin), list(loader))


def test_what_is_refused(detox):
    with pytest.raises(TypeError, match=r"iterable of batches, got int\. Pass a DataLoader"):
        DetoxLoader(3, detox)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"must be a SampDetox, got function\. Build one"):
        DetoxLoader([], lambda x: x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="must hold an image"):
        list(DetoxLoader([{"label": 1}], detox))
    with pytest.raises(ValueError, match="only the first pure tensor"):
        list(DetoxLoader([(pixels(1), pixels(1))], detox))


def test_one_ahead_starts_each_before_the_one_before_is_handed_out():
    events = []
    for batch in one_ahead(range(3), lambda b: events.append(f"start {b}") or b):
        events.append(f"use {batch}")
    assert events == ["start 0", "start 1", "use 0", "start 2", "use 1", "use 2"]
    assert list(one_ahead([], str)) == [] and list(one_ahead([1], str)) == ["1"]


def test_one_ahead_raises_an_error_in_its_turn():
    def batches():
        yield from (0, 1)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk"):
        seen.extend(one_ahead(batches(), str))
    assert seen == ["0", "1"], "a batch was lost"


def test_the_copied_images_are_those_that_detox_purifies(detox):
    """``image_places`` beside torchvision's own decision, of which SampDetox purifies images and pure tensors."""
    x, image = pixels(2), tv_tensors.Image(pixels(1)[0])
    picture = functional.to_pil_image(pixels(1)[0])
    mask = tv_tensors.Mask(torch.zeros(1, 8, 8, dtype=torch.uint8))
    for items in ([x, 1], [1, x, x], [x, image, mask], [mask, x, "a"], [picture, x], [image, image, x], [mask], []):
        wanted = detox._needs_transform_list(items)
        known = [i for i, item in enumerate(items) if wanted[i] and not isinstance(item, tv_tensors.Mask)]
        assert image_places(items) == known


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("pin", [False, True])
def test_on_cuda_images_come_out_there_and_labels_stay(tiny, pin):
    detox = SampDetox(str(tiny), seed=0, device="cuda")
    data = TensorDataset(pixels(50), torch.arange(50))
    plain = DataLoader(data, batch_size=8, pin_memory=pin)
    count = 0
    for (x, y), (given, label) in zip(DetoxLoader(plain, detox), plain, strict=True):
        assert x.device.type == "cuda" and y.device.type == "cpu" and torch.equal(y, label)
        torch.testing.assert_close(x.cpu(), detox(given), atol=1e-4, rtol=0)
        count += len(x)
    assert count == 50
    (boxed,) = DetoxLoader([[tv_tensors.Image(pixels(1)[0]), "a"]], detox)
    assert type(boxed[0]) is tv_tensors.Image and boxed[0].device.type == "cuda" and boxed[1] == "a"


# What docs/speed.md shows

DOCS = Path(__file__).resolve().parents[2] / "docs"
LOADER, RAY = (
    re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)[0] for name in ("speed.md", "ray.md")
)


def test_the_loader_of_the_docs():
    code = LOADER.replace('device="cuda"', 'device="cpu"')
    names = {"loader": [(pixels(2), torch.arange(2))], "classifier": lambda images: images.mean(dim=(1, 2, 3))}
    exec(code, names)
    assert names["logits"].shape == (2,)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three pictures of 32x32 in the folder photos, in the current one."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    signs = (torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).byte()
    for i, sign in enumerate(signs):
        functional.to_pil_image(sign).save(f"photos/{i}.png")
    return signs


def test_the_class_of_the_ray_recipe(photos, monkeypatch):
    """The recipe with a stand-in for ray, which hands one read-only batch to the class."""
    taken = {}

    class Data:
        def map_batches(self, build, *, fn_constructor_kwargs, **options):
            array = photos.movedim(1, -1).numpy().copy()
            array.flags.writeable = False
            taken.update(options)
            return build(**fn_constructor_kwargs)({"image": array, "path": ["0.png", "1.png", "2.png"]})

    def read_images(folder, **options):
        taken.update(folder=folder, **options)
        return Data()

    data = types.SimpleNamespace(read_images=read_images, ActorPoolStrategy=lambda size: size)
    ray = types.SimpleNamespace(data=data)
    monkeypatch.setitem(sys.modules, "ray", ray)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(RAY, names)
    assert taken["folder"] == "photos" and taken["mode"] == "RGB" and taken["batch_size"] == 64
    expected = SampDetox("bundled", seed=0)(photos).movedim(1, -1)
    assert torch.equal(torch.from_numpy(names["clean"]["image"]), expected)
    assert names["clean"]["path"] == ["0.png", "1.png", "2.png"]
