"""``fit_to_classifier``: the strongest dose that a toy classifier stands, and nothing asked but its answers."""

from dataclasses import replace

import pytest
import torch

from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.retouch import resampled
from sampdetox_transforms.transforms.fit import CANDIDATES, Dose, fit_to_classifier


def images(n: int = 100) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


class Purify:
    """Says by the image itself which dose it got: red holds t1, green the colour, blue the false-alarm rate."""

    def __init__(self):
        self.doses = []

    def __call__(self, x, dose):
        self.doses.append(dose)
        values = torch.tensor([dose.t1 / 100, dose.colour, dose.false_alarm_rate])
        return values[:, None, None].expand_as(x).contiguous()


def stands(t1: float = 1e9, colour: float = 1e9, rate: float = 1e9):
    """A classifier that answers 0 up to these doses, and 1 above; the images themselves are far below all of them."""

    def model(x):
        red, green, blue = x.mean(dim=(2, 3)).unbind(1)
        above = (red > t1 / 100 + 1e-6) | (green > colour + 1e-6) | (blue > rate + 1e-6)
        return torch.stack([~above, above], dim=1).float()

    return model


def zero(n: int = 100) -> torch.Tensor:
    return torch.zeros(n, 3, 8, 8)


def strongest() -> Dose:
    return Dose(**{name: values[-1] for name, values in CANDIDATES.items()})


def test_a_classifier_that_stands_everything_gets_the_strongest_dose():
    result = fit_to_classifier(stands(), Purify(), zero())
    assert result.dose == strongest() and result.kept == 1 and result.fits
    assert len(result.trials) == 1 + sum(len(values) - 1 for values in CANDIDATES.values())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"t1": 6}, {"t1": 6.0}), ({"colour": 0.5}, {"colour": 0.5}), ({"rate": 0.02}, {"false_alarm_rate": 0.02})],
)
def test_a_part_is_raised_as_far_as_the_classifier_stands_it(limits, expected):
    result = fit_to_classifier(stands(**limits), Purify(), zero())
    assert result.dose == replace(strongest(), **expected)


DEFAULT = Dose(false_alarm_rate=0.05, t1=12, colour_gain=1.6, jitter=0.12)


def test_a_start_within_the_budget_is_raised_and_never_lowered():
    result = fit_to_classifier(stands(t1=12, colour=0.25), Purify(), zero(), start=DEFAULT)
    assert result.trials[0].dose == DEFAULT and result.trials[0].within_budget
    assert result.dose == replace(strongest(), t1=12.0, colour=0.25)
    assert len(result.trials) < 1 + sum(len(values) - 1 for values in CANDIDATES.values())


@pytest.mark.parametrize(
    ("limits", "lowered"),
    [({"rate": 0.02}, {"false_alarm_rate": 0.01}), ({"t1": 6}, {"false_alarm_rate": 0.01, "t1": 0.0})],
)
def test_a_start_that_costs_too_much_is_lowered_part_by_part(limits, lowered):
    result = fit_to_classifier(stands(**limits), Purify(), zero(), start=DEFAULT)
    begun = next(trial.dose for trial in result.trials if trial.within_budget)
    assert begun == replace(DEFAULT, **lowered) and result.dose.jitter == 0.12 and result.fits
    assert result.steps().split("\n")[0].endswith("keeps 0.0%, too much")


def test_where_no_start_fits_the_weakest_dose_is_chosen():
    result = fit_to_classifier(stands(rate=0.001), Purify(), zero(), start=DEFAULT)
    assert result.dose == Dose() and not result.fits and len({trial.dose for trial in result.trials}) == 5


def test_a_start_is_brought_to_candidates_and_keeps_what_has_none():
    few = {"t1": (0.0, 10.0, 30.0), "detail": ((1.0, 0.0), (0.5, 1.0))}
    result = fit_to_classifier(stands(t1=20), Purify(), zero(), start=DEFAULT, candidates=few)
    assert result.trials[0].dose == replace(DEFAULT, t1=10.0)
    assert result.dose == replace(DEFAULT, t1=10.0, detail=(0.5, 1.0))


def test_detail_is_judged_on_the_images_after_it():
    board = torch.ones(100, 3, 32, 32)
    board[..., ::2, ::2], board[..., 1::2, 1::2] = 0.3, 0.3
    ladder = ((1.0, 0.0), (0.9, 0.0), (0.8, 0.0), (0.5, 0.0))

    def contrast(factor: float) -> float:
        return resampled(board[:1] * 2 - 1, factor).div(2).std().item()

    limit = (contrast(0.9) + contrast(0.8)) / 2
    assert contrast(1) > contrast(0.9) > limit > contrast(0.8) > contrast(0.5)
    result = fit_to_classifier(
        lambda z: (z.std(dim=(1, 2, 3)) > limit).long(), lambda z, dose: z, board, candidates={"detail": ladder}
    )
    assert result.dose.detail == (0.9, 0.0) and [trial.within_budget for trial in result.trials] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(("budget", "colour"), [(0.03, 1.0), (0.02, 0.5), (0.019, 0.25)])
def test_the_budget_is_a_share_of_the_answers(budget, colour):
    """Image i of 100 changes its class from some amount of colour on: 2 at .5, 3 at .75 and above."""
    x = images()
    breaks = torch.full((100,), 2.0)
    breaks[[3, 50]], breaks[7] = 0.5, 0.75
    numbered = x.clone()
    numbered[:, 0, 0, 0] = torch.arange(100) / 100

    def purify(z, dose):
        z = z.clone()
        z[:, 1, 0, 0] = dose.colour
        return z

    def model(z):
        number = (z[:, 0, 0, 0] * 100).round().long()
        return (z[:, 1, 0, 0] >= breaks[number] - 1e-6).long()

    numbered[:, 1, 0, 0] = 0
    result = fit_to_classifier(model, purify, numbered, budget=budget, candidates={"colour": CANDIDATES["colour"]})
    assert result.dose.colour == colour
    assert result.kept >= 1 - budget and result.kept == 1 - (breaks <= colour).sum().item() / 100


def test_where_nothing_fits_the_weakest_dose_is_chosen_and_said_so():
    result = fit_to_classifier(stands(rate=0.001), Purify(), zero())
    assert result.dose == Dose() and not result.fits and result.kept == 0 and len(result.trials) == 1
    assert "not within 1.0%" in str(result) and "keeps 0.0%" in str(result)


def test_doses_that_differ_in_detail_alone_are_purified_once():
    purify = Purify()
    result = fit_to_classifier(stands(t1=6), purify, zero(), batch_size=100)
    assert len(purify.doses) == len(set(purify.doses))
    assert len(purify.doses) == len({replace(trial.dose, detail=Dose.detail) for trial in result.trials})


def test_the_result_is_the_same_again_and_in_other_batches():
    def model(z):
        return (z.flatten(1) @ torch.linspace(-1, 1, 192) > 0.05).long()

    def purify(z, dose):
        return z.lerp(z.mean(dim=1, keepdim=True), dose.colour) * (1 - dose.t1 / 500)

    first = fit_to_classifier(model, purify, images(150), budget=0.05)
    assert first == fit_to_classifier(model, purify, images(150), budget=0.05, batch_size=7)
    assert any(not trial.within_budget for trial in first.trials) and first.dose != Dose()


def test_it_sees_hard_labels_only():
    seen = []

    def model(z):
        seen.append(z.requires_grad)
        return stands()(z).argmax(dim=1)

    assert fit_to_classifier(model, Purify(), zero()).dose == strongest() and not any(seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(99, 3, 8, 8)}, r"100 or more, got shape \(99, 3, 8, 8\)"),
        ({"images": torch.zeros(3, 8, 8)}, r"got shape \(3, 8, 8\)"),
        ({"budget": 1}, r"in \[0, 1\), got 1"),
        ({"candidates": {"sharpness": (1,)}}, "got 'sharpness'"),
        ({"candidates": {"t1": ()}}, "got 't1'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_to_classifier(**{"model": stands(), "purify": Purify(), "images": zero()} | arguments)


def test_images_in_doubt_keep_their_level_unless_the_dose_lowers_that_of_all():
    assert replace(DEFAULT, t1=12).of(Restore()).t1_doubt == Restore().t1_doubt is not None
    assert replace(DEFAULT, t1=6).of(Restore()).t1_doubt is None
