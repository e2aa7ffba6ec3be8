"""Experiment relabel: the victim's own training set, the rule, the columns, and resumption."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.attacks.datasets import PoisonedDataset
from sampdetox_transforms.lab.evaluation import relabel, training_sets
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.victims import training as victims
from sampdetox_transforms.lab.victims.config import POISONING, VictimConfig
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.lab.victims.training import train_victim
from sampdetox_transforms.lab.victims.victim import load_victim, measure
from sampdetox_transforms.transforms import presets

SIZE, CLASSES, EACH = 16, 3, 10


@pytest.fixture(autouse=True)
def _data(monkeypatch, root):
    """The classes are colours, so that no colour may be taken out."""
    monkeypatch.setenv("SAMPDETOX_DATA", str(root))
    monkeypatch.setitem(presets.PRESETS, "restore", replace(presets.PRESETS["restore"], colour_gain=0))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of data as SAMPDETOX_DATA names it: three classes of flat colours with some noise."""
    root = tmp_path_factory.mktemp("data")
    (root / "models").mkdir()
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label in range(CLASSES):
            folder = root / "gtsrb32" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(EACH):
                image = torch.full((3, SIZE, SIZE), 0.3)
                image[label] = 0.6
                image = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
                functional.to_pil_image(image).save(folder / f"{i:02}.png")
    return root


def config(root, **changes):
    settings = {"data": str(root / "gtsrb32" / "train"), "size": SIZE, "epochs": 2, "batch_size": 10, "bf16": False}
    return VictimConfig(**{**settings, "target_label": 1, "poison_rate": 0.3, **changes})


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("victims") / "badnets"
    train_victim(config(root, settings={"size": 4}), folder)
    return folder


def run(out, folder, **options):
    n = options.pop("n", 2000)
    result = run_experiment(
        "relabel",
        n=n,
        out=out / "result",
        overwrite=True,
        victims=[folder],
        work=out / "work",
        **options,
    )
    return result.document["rows"]


def stored(out):
    return training_sets.load_file(next((out / "work").glob("*/purified.safetensors")))


def refuse(*args, **kwargs):
    raise AssertionError("this was done before")


def channel(images):
    """Logits that are right on the drawn classes, with the trigger or without."""
    return images.mean(dim=(2, 3))


# The rule


def test_a_label_gives_way_to_the_guess_and_with_flags_only_there():
    labels, guessed = torch.tensor([1, 1, 1, 0, 2]), torch.tensor([1, 0, 2, 0, 0])
    flagged = torch.tensor([True, True, False, True, False])
    assert relabel.relabel(labels, guessed).tolist() == [1, 0, 2, 0, 0]
    assert relabel.relabel(labels, guessed, flagged).tolist() == [1, 0, 1, 0, 2]


def test_what_a_rule_did_is_counted_against_the_truth():
    #                      corrected, to another wrong one, left wrong, true ones kept, damaged: poisoned, clean, clean
    labels = torch.tensor([1, 1, 1, 0, 1, 0, 2])
    truth = torch.tensor([0, 0, 2, 0, 1, 0, 2])
    corrected = torch.tensor([0, 2, 1, 0, 0, 2, 1])
    poisoned = torch.tensor([True, True, True, False, True, False, False])
    data = training_sets.TrainingSet(torch.zeros(7, 3, 2, 2), labels, truth, poisoned, None)
    assert relabel.count(data, corrected) == {
        "relabelled": 5,
        "poisoned found": 3,
        "found": 2,
        "corrected": 1,
        "damaged": 3,
        "clean damaged": 2,
    }


@pytest.mark.parametrize("rule", ["all", "flagged"])
def test_the_last_classifier_is_taught_what_the_rule_says(folder, tmp_path, monkeypatch, rule):
    taught = {}

    def trained(what, images, labels, *others):
        taught[what] = labels
        return channel

    monkeypatch.setattr(relabel, "trained", trained)
    (row,) = run(tmp_path, folder, relabel=rule)
    data = training_sets.TrainingSet(**stored(tmp_path))
    wrong = data.labels != data.truth
    assert 0 < int(wrong.sum()) == row["wrong labels"] < int(data.poisoned.sum()) == row["poisoned"]
    assert not (wrong & ~data.poisoned).any()
    assert torch.equal(taught["D.L."], data.labels)
    expected = data.truth if rule == "all" else torch.where(data.flagged, data.truth, data.labels)
    assert torch.equal(taught["C.L."], expected)
    assert row["rules"]["all"]["corrected"] == row["wrong labels"] and row["rules"]["all"]["damaged"] == 0
    assert row["rules"]["flagged"]["corrected"] == int((wrong & data.flagged).sum())


def test_flags_need_a_search(folder, tmp_path):
    with pytest.raises(ValueError, match="needs a preset that searches, got ddim"):
        run(tmp_path, folder, relabel="flagged", preset="ddim")


# The data


@pytest.mark.parametrize("changes", [{"settings": {"size": 4}}, {"attack": "wanet"}, {"attack": "sig"}])
def test_the_poisoned_set_is_what_the_victim_was_trained_on(root, tmp_path, monkeypatch, changes):
    seen = {}
    monkeypatch.setattr(victims, "fit", lambda model, x, y, *others, **named: seen.update(images=x, labels=y))
    folder, work = tmp_path / "victim", tmp_path / "work"
    train_victim(config(root, **changes), folder)
    before, written = (folder / POISONING).read_bytes(), (folder / POISONING).stat().st_mtime_ns
    work.mkdir()
    images, labels, truth, poisoned = training_sets.poisoned_set(folder, training_sets.stored_config(folder), work)
    assert torch.equal(images, seen["images"]) and torch.equal(labels, seen["labels"])
    assert truth.tolist() == [label for label in range(CLASSES) for _ in range(EACH)]
    clean = victims.materialise(image_folder(root / "gtsrb32" / "train", SIZE))[0]
    covers = 6 if changes.get("attack") == "wanet" else 0  # altered, with their true label
    assert int((images != clean).flatten(1).any(dim=1).sum()) == int(poisoned.sum()) + covers
    assert (folder / POISONING).read_bytes() == before and (folder / POISONING).stat().st_mtime_ns == written


def test_another_share_is_poisoned_with_the_same_trigger(root, folder, tmp_path):
    config = replace(training_sets.stored_config(folder), poison_rate=0.25)
    images, labels, _, poisoned = training_sets.poisoned_set(folder, config, tmp_path)
    clean, truth = victims.materialise(image_folder(root / "gtsrb32" / "train", SIZE))
    assert int(poisoned.sum()) == round(0.25 * len(truth)) and (labels[poisoned] == config.target_label).all()
    victim = load_victim(folder)
    torch.testing.assert_close(images[poisoned], victim.attack(clean[poisoned]), atol=1 / 255, rtol=0)
    assert torch.equal(images[~poisoned], clean[~poisoned])


def test_other_data_is_refused(root, folder, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "gtsrb32" / "train" / "class0" / "00.png").unlink()
    monkeypatch.setenv("SAMPDETOX_DATA", str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"must be what .* was trained on, got other images"):
        training_sets.poisoned_set(folder, training_sets.stored_config(folder), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"robust_noise": 0.1}, "robust_noise must be 0, got 0.1"), ({"attack": "none"}, "attack must be one of.*'none'")],
)
def test_victims_without_a_training_set_to_purify_are_refused(folder, tmp_path, changes, message):
    shutil.copytree(folder, tmp_path / "victim")
    about = tmp_path / "victim" / "victim.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        training_sets.stored_config(tmp_path / "victim")


def test_the_images_of_a_limit_are_not_the_poisoned_ones():
    dataset = victims.Images(torch.zeros(1000, 1, 1, 1), torch.arange(1000) % 10, list("0123456789"))
    poisoned = PoisonedDataset(dataset, lambda x: x, 0, 0.1, seed=3).indices
    drawn = training_sets.drawn_from(1000, 100, seed=3)
    assert len(drawn.unique()) == 100 and int(torch.isin(drawn, poisoned).sum()) < 25  # 10 are expected
    assert torch.equal(training_sets.drawn_from(1000, None, seed=3).sort().values, torch.arange(1000))


# The whole


def test_columns_and_resumption(root, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(training_sets, "PART", 8)
    explain, calls = SampDetox.explain, []

    def killed(self, image):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(image))
        return explain(self, image)

    monkeypatch.setattr(SampDetox, "explain", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", folder, n=20)
    monkeypatch.setattr(SampDetox, "explain", lambda self, image: (calls.append(len(image)), explain(self, image))[1])
    (row,) = run(tmp_path / "a", folder, n=20)
    assert calls == [8, 8, 8, 6]

    # without the kill, and in one part, the same; in float32 to within 1e-4, which may move a value by one in 255
    monkeypatch.setattr(training_sets, "PART", 30)
    run(tmp_path / "b", folder, n=20)
    first, second = (
        training_sets.load_file(next((tmp_path / name / "work").glob("*/purified.safetensors"))) for name in "ab"
    )
    assert int((first["images"].int() - second["images"].int()).abs().max()) <= 1
    assert all(torch.equal(first[name], second[name]) for name in ("labels", "truth", "poisoned", "flagged"))

    monkeypatch.setattr(SampDetox, "explain", refuse)
    monkeypatch.setattr(relabel, "fit", refuse)
    assert run(tmp_path / "a", folder, n=20) == [row]
    for flags in ({"seed": 1}, {"limit": 20}):  # what they depend on
        with pytest.raises(AssertionError, match="this was done before"):
            run(tmp_path / "a", folder, n=20, **flags)

    # no defense is the classifier as it is stored, on the images as they are
    victim, config = load_victim(folder), training_sets.stored_config(folder)
    everything = relabel.images_for_testing(victim, config, 1000, 0)
    alone = measure(victim, image_folder(root / "gtsrb32" / "test", SIZE))
    assert relabel.shares(victim.model, everything) == {
        name: relabel.rounded(share) for name, share in alone.items() if name != "PA"
    }
    assert row["no defense"] == relabel.shares(victim.model, relabel.images_for_testing(victim, config, 20, 0))
    text = (tmp_path / "a" / "result.md").read_text()
    assert "| badnets |" in text and "fewer images" not in text


def test_with_fewer_images_the_table_says_so(folder, tmp_path, monkeypatch):
    (row,) = run(tmp_path, folder, limit=20, epochs=1, preset="ddim")
    assert row["training images"] == 20 and set(row["rules"]) == {"all"} and "flagged" not in row
    assert "badnets were trained on fewer images" in (tmp_path / "result.md").read_text()


def test_classifiers_are_kept_by_their_labels(root, tmp_path):
    images = torch.randint(256, (12, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(12) % CLASSES
    for each in (labels, labels, labels.flip(0)):
        relabel.trained("D.L.", images, each, config(root, epochs=1), CLASSES, tmp_path)
    assert len(list(tmp_path.glob("classifier-*.safetensors"))) == 2
    assert not list(tmp_path.glob("*training*"))
