"""Floods of something natural: what they put on images, what is measured, and the tables of the experiment."""

import pytest
import torch

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.evaluation import shared_study
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.evaluation.shared_clean import claims_on_clean, measure_costs
from sampdetox_transforms.lab.evaluation.shared_floods import FLOODS, measure_flood
from sampdetox_transforms.lab.evaluation.shared_study import comparer, purifier, render
from sampdetox_transforms.lab.evaluation.shared_trigger import look
from sampdetox_transforms.lab.evaluation.study import Plan
from sampdetox_transforms.method.shared.spectrum import restored, smoothed
from sampdetox_transforms.transforms.shared_images import purified_by


def natural(n, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(16)[:, None].float()
    x = restored(torch.randn(n, 3, 16, 16, generator=generator) / (1 + (rows.square() + rows.T.square()).sqrt()))
    return (0.5 + 0.8 * x).clamp(0.05, 0.9)


def square(images):
    images = images.clone()
    images[..., 10:13, 9:12] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    return images


def purify(images):
    """Takes the square out and fills it with grey; smooths a little."""
    there = ((images - square(images)).abs().amax(dim=(1, 2, 3)) < 0.01)[:, None, None, None]
    covered = (square(torch.zeros_like(images)) > 0).any(dim=1, keepdim=True)
    return 0.6 * torch.where(there & covered, 0.5, images) + 0.4 * smoothed(images, 3)


def bright(images):
    return (images.mean(dim=(1, 2, 3)) > 0.5).long()


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("side", [32, 64])
def test_each_flood_leaves_most_of_an_image_and_does_not_change_its_input(name, side):
    images = torch.full((2, 3, side, side), 0.4)
    put = FLOODS[name](images)
    changed = (put - images).abs().amax(dim=1) > 0.02
    assert 0.005 < changed.float().mean() < 0.5
    assert torch.equal(changed[0], changed[1]) and (images == 0.4).all() and 0 <= put.min() <= put.max() <= 1


def test_what_a_flood_does_is_measured():
    traffic, evaluation = (look(x, bright(x), purify) for x in (natural(70, 0), natural(40, 1)))

    def behind(trigger):
        return lambda x: purify(trigger.remove_if_matched(x)[0])

    row = measure_flood(square, traffic, evaluation, purify, purify, behind, bright, None)
    assert row["claimed"] and row["automatic"] and row["area"] == pytest.approx(9 / 256)
    assert row["carriers matched"] == 1 and row["others matched"] == 0
    assert row["before"] >= 0.8 and row["after"] >= 0.8
    none = measure_flood(lambda x: x, traffic, evaluation, purify, purify, behind, bright, None)
    assert not none["claimed"] and none["area"] is None and none["before"] == none["after"]


def test_a_flood_is_sought_in_what_is_compared():
    traffic, evaluation = (look(x, bright(x), purify) for x in (natural(70, 0), natural(40, 1)))
    compared = []

    def compare(images):
        compared.append(len(images))
        return purify(images)

    assert measure_flood(square, traffic, evaluation, purify, compare, lambda t: purify, bright, None)["claimed"]
    assert compared == [20], "only the carriers of the traffic are compared; the others were before"


def test_images_are_compared_as_for_recovering_a_trigger(tiny, signs_like):
    detox = SampDetox(str(tiny), seed=0)
    compared = comparer(detox)(signs_like)
    assert torch.equal(compared, purified_by(detox, signs_like)[0])
    assert not torch.equal(compared, purifier(detox)(signs_like))


@pytest.fixture
def signs_like():
    return torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(4))


def test_clean_images_are_drawn_and_counted():
    clean = natural(70, 0)
    marked = torch.cat([square(clean[:20]), clean[20:]])
    pools = {"clean": (clean, purify(clean)), "marked": (marked, purify(marked))}
    counts = claims_on_clean(pools, draws=5, n=70)
    assert counts["clean"] == {"draws": 3, "claimed": 0, "automatic": 0}
    assert counts["marked"] == {"draws": 2, "claimed": 2, "automatic": 2}


def test_costs_are_shares_of_purifying(monkeypatch):
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr("sampdetox_transforms.lab.speed.clocks.clock", lambda device: next(seconds))
    found = measure_costs(square, natural(70, 0), purify, carriers=20)
    shares = dict.fromkeys(("search, nothing shared", "search, found", "matching"), pytest.approx(1 / 3))
    assert found == {"images": 70, "purifying": pytest.approx(30_000 / 70), **shares}  # three batches, ten seconds each
    none = measure_costs(lambda x: x, natural(70, 0), purify)
    assert none["search, found"] is None and none["matching"] is None


def test_tables():
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    own = {"triggered": 10, "traffic": 200, "defense": "default alone", "correlation": None, "found": False}
    own |= dict.fromkeys(("CA", "PA", "ASR", "matched", "clean_matched"), share)
    flood = {"flood": "logo", "claimed": True, "area": 0.01, "energy": 0.02, "automatic": True}
    flood |= dict.fromkeys(("carriers matched", "others matched", "before", "after"), 1.0)
    rows = [
        {"victim": "square", "rows": [own]},
        {"clean draws": 20, "claims": {"gtsrb": share}, "automatic": {"gtsrb": 7}},
        flood,
    ]
    costs = {"images": 200, "purifying": 14.26, "search, nothing shared": 0.0761}
    rows.append({"costs": "lfw", **costs, "search, found": None, "matching": None})
    text = render({"rows": rows})
    assert "| square | 10 of 200 | default alone | 50.0 [40.0, 60.0] |" in text
    assert "| gtsrb | 20 | 10 | 7 |" in text and "| lfw | 200 | 14.3 | 0.0761 | - | - |" in text
    assert "| logo | yes | 0.010 | 0.020 | yes |" in text


def test_too_few_images_are_said_before_any_work(monkeypatch, tiny):
    few = torch.rand(30, 3, 24, 24), torch.zeros(30, dtype=torch.long)
    monkeypatch.setattr(shared_study, "images_of", lambda plan, view: few)
    plan = Plan(options={"traffic": 20}, n=11)
    with pytest.raises(ValueError, match="at most 30 images together, got 20 and 11"):
        shared_study.looked_at(plan, SampDetox(str(tiny)), "photographs")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="flood"):
        run_experiment("shared-trigger", floods=("lgo",))
    with pytest.raises(ValueError, match="images"):
        run_experiment("shared-trigger", images="mnist")
