"""The harness, on victims and defenses whose shares are known beforehand."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from sampdetox_transforms import PRESETS, Schedule, load_denoiser
from sampdetox_transforms.lab.defenses import CarnM
from sampdetox_transforms.lab.environment import all_in_words
from sampdetox_transforms.lab.evaluation import experiments
from sampdetox_transforms.lab.evaluation.engine import evaluate, evaluate_robustness
from sampdetox_transforms.lab.evaluation.experiments import (
    EXPERIMENTS,
    T1,
    T2,
    NoEstimate,
    Tools,
    get_experiment,
    source_of,
)
from sampdetox_transforms.lab.evaluation.paper_results import (
    TABLE_1,
    TABLE_4_GTSRB,
    TABLE_5_TINY,
    TABLE_6_VGG19,
    TABLE_7_RESNET34,
)
from sampdetox_transforms.lab.evaluation.render import (
    by_attack,
    render,
    render_experiment,
    render_levels,
    render_robustness,
)
from sampdetox_transforms.lab.evaluation.report import read_report
from sampdetox_transforms.lab.evaluation.rows import NO_DEFENSE, Column
from sampdetox_transforms.lab.metrics import wilson
from sampdetox_transforms.lab.victims.poisoned import Images
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.networks.denoiser import adapt
from sampdetox_transforms.transforms.transform import SampDetox

K, N = 4, 24


def signs(n=N):
    """Grey images whose brightness is their label; every fourth is brighter by one class."""
    labels = torch.arange(n) % K
    images = ((labels + 0.5) / 8)[:, None, None, None].expand(-1, 3, 16, 16).clone()
    return Images(images, labels, [str(k) for k in range(K)])


def plant(images):
    images = images.clone()
    images[..., 0, 0] = 1
    return images


class ByBrightness(nn.Module):
    """Names the class whose brightness is nearest, but 2 for an image with a bright corner."""

    def forward(self, images):
        brightness = images[:, :, 4:, 4:].mean(dim=(1, 2, 3))
        logits = -((torch.arange(K) + 0.5) / 8 - brightness[:, None]).abs()
        return logits + 10 * (images[:, :, 0, 0].mean(1, keepdim=True) > 0.9) * torch.eye(K)[2]


def victim(**changes):
    return replace(
        Victim("corner", ByBrightness().eval(), plant, 2, "all2one", K, 16, {"attack": "badnets"}), **changes
    )


def darken_corner(images):
    images = images.clone()
    images[..., :2, :2] = 0
    return images


DARKEN = Column(name="darken", build=lambda model: darken_corner)


def test_known_shares_and_sizes():
    brighter = Column(name="brighter", build=lambda model: lambda images: (images + 1 / 8).clamp(0, 1))
    none, darkened, wrong = evaluate([victim()], [NO_DEFENSE, DARKEN, brighter], signs()).rows
    assert (none.ca.value, none.pa.value, none.asr.value) == (1, 0, 1)
    assert (darkened.ca.value, darkened.pa.value, darkened.asr.value) == (1, 1, 0)
    assert (none.ca.n, none.pa.n, none.asr.n) == (N, N * 3 // 4, N * 3 // 4)
    assert wrong.ca.value == 0.25  # the last class has no brighter one
    assert none.ca == wilson(N, N)


def test_a_clean_classifier_has_ca_only_and_composites_count_both_classes():
    row = evaluate([victim(attack=None)], [NO_DEFENSE], signs()).rows[0]
    assert (row.ca.value, row.pa, row.asr, row.denoiser_calls_triggered) == (1, None, None, None)
    mixed = victim(mode="composite", attack=None, target_label=3, about={"settings": {"first": 0, "second": 1}})
    row = evaluate([mixed], [NO_DEFENSE], signs()).rows[0]
    assert row.pa.value > 0.9  # a mix of two greys is one of the two, or between
    assert row.pa.n == N


def test_the_same_images_for_every_defense_and_seed():
    seen = {}

    def remember(name):
        def build(model):
            return lambda images: seen.setdefault(name, []).append(images.clone()) or images

        return Column(name=name, build=build)

    evaluate([victim()], [remember("a"), remember("b")], signs(), n=9, seed=3, batch_size=4)
    evaluate([victim()], [remember("c")], signs(), n=9, seed=4, batch_size=4)
    a, b, c = (torch.cat(seen[name]) for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a[:9], c[:9])
    assert max(map(len, seen["a"])) == 4


def test_a_defense_may_use_the_model_and_its_calls_are_counted():
    def build(model):
        def twice(images):
            model(images), model(images[:1])
            return images

        return twice

    row = evaluate([victim()], [Column(name="asks", build=build)], signs(16), batch_size=8).rows[0]
    batches, images = 2 + 2, 16 + 12
    assert row.classifier_calls == pytest.approx((images + batches) / images)
    assert row.denoiser_calls == 0


def test_denoiser_calls_are_counted_apart():
    denoiser = adapt(NoEstimate(), Schedule.named("linear"))
    column = Tools(denoiser=denoiser).sampdetox("stage1", replace(PRESETS["ddim"], t2=0))
    row = evaluate([victim()], [column], signs(8)).rows[0]
    assert (row.denoiser_calls, row.denoiser_calls_clean, row.denoiser_calls_triggered) == (1, 1, 1)
    assert row.settings["t2"] == 0


def test_an_interrupted_run_goes_on_and_others_are_refused(tmp_path):
    out = tmp_path / "deep" / "rows.json"
    calls = []

    def build(model):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return lambda images: images

    columns = [NO_DEFENSE, Column(name="x", build=build), Column(name="y", build=build)]
    with pytest.raises(KeyboardInterrupt):
        evaluate([victim()], columns, signs(), out=out, about={"command": "one"})
    assert [row.defense for row in read_report(out)[2]] == ["none", "x"]
    report = evaluate([victim()], columns, signs(), out=out, about={"command": "another"})
    assert [row.defense for row in report.rows] == ["none", "x", "y"]
    assert len(calls) == 3  # x was not built again
    assert read_report(out)[0]["command"] == "another"  # the one that makes all rows
    assert read_report(out)[2] == report.rows
    assert len(json.loads(out.read_text())["environments"]) == 1
    with pytest.raises(ValueError, match=r"goes on only with the settings.*another seed.*Repeat them"):
        evaluate([victim()], columns, signs(), out=out, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[..., 1:], r"keep the images' shape.*got.*from 'bad'.*Resize"),
        (lambda images: images * 2, r"in \[0, 1\], got values in.*from 'bad'.*clamp"),
        (lambda images: images * float("nan"), r"in \[0, 1\], got values in \[nan"),
    ],
)
def test_defenses_that_change_shape_or_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate([victim()], [Column(name="bad", build=lambda model: change)], signs())


def test_other_bad_input_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"return a tensor, got list"):
        evaluate([victim()], [Column(name="bad", build=lambda model: list)], signs())
    with pytest.raises(ValueError, match=r"victims must have different names.*corner"):
        evaluate([victim(), victim()], [NO_DEFENSE], signs())
    with pytest.raises(ValueError, match=r"defenses must have different names, and be there, got none"):
        evaluate([victim()], [], signs())
    with pytest.raises(ValueError, match=r"n must be in \[1, 24\].*got 25"):
        evaluate([victim()], [NO_DEFENSE], signs(), n=25)
    with pytest.raises(ValueError, match=r"models must be in eval mode, got.*'corner'"):
        evaluate([victim(model=ByBrightness())], [NO_DEFENSE], signs())
    with pytest.raises(ValueError, match=r"\(n, 5\), got \(24, 4\)"):
        evaluate([victim(num_classes=5)], [NO_DEFENSE], signs())
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a file that evaluate wrote.*Name another"):
        evaluate([victim()], [NO_DEFENSE], signs(), out=tmp_path / "other.json")


def test_a_file_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    built = []
    column = Column(name="x", build=lambda model: built.append(1))
    with pytest.raises(OSError, match="file"):
        evaluate([victim()], [column], signs(), out=tmp_path / "file" / "rows.json")
    assert not built


def test_robustness_rows():
    row = evaluate_robustness([victim()], signs(), n=N, draws=2)[0]
    assert row.asr == 1
    assert len(row.visibility) == len(row.robustness) == 18  # those of class 2 left out
    assert all(0 < v < 0.5 for v in row.visibility)
    assert all(0 < eta < 1 for eta in row.robustness)
    assert "corner" in render_robustness([row])
    with pytest.raises(ValueError, match="n must be in"):
        evaluate_robustness([victim()], signs(), n=0)
    with pytest.raises(ValueError, match="robustness needs a trigger"):
        evaluate_robustness([victim(attack=None)], signs(), n=8)


# Experiments


class Constant(nn.Module):
    """A denoiser whose answer is one number."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x_t, t):
        return torch.full_like(x_t, self.value)


def tools(**changes):
    denoiser = adapt(NoEstimate(), Schedule.named("linear"))
    others = {"own": denoiser, "photographs": denoiser}
    return Tools(**{"denoiser": denoiser, "full_range": denoiser, "others": others, "n_slow": 3, **changes})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_columns_of_every_experiment(name):
    columns = get_experiment(name).columns(tools())
    assert len({column.name for column in columns}) == len(columns)
    for column in columns:
        built = column.build(ByBrightness())
        assert callable(built)
        json.dumps(dict(column.settings))
        if isinstance(built, SampDetox) and column.name in ("sampdetox", "ddim"):
            assert built.settings == PRESETS["ddim"]
            assert built.seed == 0


def test_the_slow_baselines_run_in_the_harness():
    columns = [
        c for c in get_experiment("comparison").columns(tools(n_slow=2)) if c.name in ("bdmae", "sancdifi", "zip")
    ]
    rows = evaluate([victim()], columns, signs(), n=2).rows
    assert [row.defense for row in rows] == [column.name for column in columns]
    calls = {row.defense: (row.denoiser_calls, row.classifier_calls) for row in rows}
    assert calls == {"bdmae": (50, 46), "zip": (20, 0), "sancdifi": (10, 2001)}


def test_lite_bd_is_compared_where_its_weights_are(monkeypatch, tmp_path, caplog):
    def columns():
        return [c for c in get_experiment("comparison").columns(tools()) if c.name == "lite-bd"]

    monkeypatch.setenv("SAMPDETOX_DATA", str(tmp_path))
    assert columns() == []
    assert "lite-bd is left out: SAMPDETOX_DATA must hold models/carn_m.pth" in caplog.text
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "carn_m.pth").write_bytes(b"other")
    with pytest.raises(OSError, match="must have the sha256"):
        columns()
    monkeypatch.setattr(experiments, "load_carn_m", lambda path: CarnM())
    [row] = evaluate([victim()], columns(), signs(), n=4).rows
    assert (row.defense, row.access, row.denoiser_calls, row.classifier_calls) == ("lite-bd", "none", 1, 0)
    assert row.settings["weights"] == "carn_m.pth"


def test_what_each_experiment_compares(monkeypatch):
    monkeypatch.delenv("SAMPDETOX_DATA", raising=False)

    def names(experiment, **changes):
        return {column.name for column in get_experiment(experiment).columns(tools(**changes))}

    assert names("comparison") >= {"none", "sampdetox", "zip", "bdmae", "sancdifi"}
    assert not names("comparison", full_range=None) & {"zip", "sancdifi"}
    assert not names("comparison") & {"lite-bd"}  # its weights are not there
    assert names("ablation") == {"none", "noise", "stage1", "sampdetox"}
    assert names("levels") == {f"t1={t}" for t in T1} | {f"t2={t}" for t in T2}
    assert names("transformations") == {"none", "noising", "shrink-pad", "blur", "sampdetox"}
    assert names("denoisers") == names("faces") == {"none", "own", "photographs"}
    with pytest.raises(ValueError, match=r"denoisers must be given to be compared, got none.*--denoisers"):
        names("denoisers", others={})
    with pytest.raises(ValueError, match=r"experiment must be one of.*'ablation'"):
        get_experiment("ablatoin")


def test_each_denoiser_is_asked_under_its_own_name_beside_the_papers_numbers():
    schedule = Schedule.named("linear")
    others = {name: adapt(Constant(value), schedule) for name, value in (("own", 0.0), ("photographs", 1.0))}
    columns = get_experiment("denoisers").columns(tools(others=others))
    x = torch.full((2, 3, 16, 16), 0.5)
    none, own, photographs = (column.build(None)(x) for column in columns)
    assert torch.equal(none, x)
    assert (own.mean() - photographs.mean()).abs() > 0.01  # what the second takes for noise is taken away
    rows = evaluate([replace(victim(), about={"attack": "badnets"})], columns, signs(), n=4).rows
    paper = [get_experiment(name).paper for name in ("denoisers", "faces")]
    assert [paper[0](row) for row in rows] == [None, (89.57, 90.15, 2.11), (89.23, 85.02, 2.26)]
    assert [paper[1](row)[2] for row in rows] == [99.32, 1.36, 1.57]


def test_precision_is_measured_from_weights_that_are_not_rounded_yet():
    made = tools(denoiser=load_denoiser("bundled"))
    assert [column.settings["dtype"] for column in get_experiment("precision").columns(made)] == [
        "torch.float32",
        "torch.bfloat16",
    ] * 2
    made.denoiser.set_precision(torch.bfloat16)
    with pytest.raises(ValueError, match=r"must be in float32, got torch\.bfloat16\. Use --dtype float32"):
        get_experiment("precision").columns(made)


def test_noise_star_leaves_the_noise_in():
    column = next(c for c in get_experiment("ablation").columns(tools()) if c.name == "noise")
    x = torch.full((2, 3, 16, 16), 0.5)
    sigma = float(Schedule.named("linear").sigma(20))
    spread = (column.build(None)(x) - x).std()
    assert spread > 0.9 * sigma / 2  # at least stage 1's, on [0, 1]


def test_tables_put_the_paper_beside():
    report = evaluate([victim()], [NO_DEFENSE, DARKEN], signs(), about={"command": "sampdetox evaluate X"})
    text = render_experiment("comparison", report)
    first = "| badnets (corner) | none | 100.0 [86.2, 100.0] | 0.0 [0.0, 17.6] | 100.0 [82.4, 100.0] "
    assert first + "| 95.2 / 3.2 / 62.3 | 24, 18 |" in text
    assert "`sampdetox evaluate X`: 24 of 24 test images drawn with seed 0" in text
    assert "paper" not in render(report.rows)
    assert TABLE_4_GTSRB["badnets", "sampdetox"] == (94.56, 93.49, 1.95)
    assert TABLE_1["bpp", "sampdetox"] == (90.59, 84.83, 6.15)
    assert len(TABLE_1) == len(TABLE_4_GTSRB) == 50
    later = replace(report.rows[0], attack="sig")
    assert [row.attack for row in by_attack([later, *report.rows])] == ["badnets", "badnets", "sig"]


def test_the_papers_other_tables_stand_beside_their_own_victims():
    row = evaluate([victim()], [NO_DEFENSE], signs()).rows[0]
    wanet = replace(row, attack="wanet", defense="sampdetox")
    assert get_experiment("cifar10").paper(replace(wanet, attack="bpp")) == (90.59, 84.83, 6.15)
    assert get_experiment("tiny-imagenet").paper(wanet) == (51.90, 50.40, 6.49)
    assert get_experiment("textures").paper(wanet) == (58.33, 58.12, 2.21)
    assert get_experiment("textures").paper(replace(wanet, defense="blur")) == (33.49, 29.50, 3.67)
    paper = get_experiment("classifiers").paper
    assert paper(wanet) is None and paper(row) is None  # PreAct-ResNet18 is in Table 4
    assert paper(replace(wanet, classifier="vgg19")) == (90.10, 86.80, 5.53)
    for width in ("", "-narrow"):
        assert paper(replace(wanet, classifier=f"resnet34{width}")) == (92.66, 88.19, 5.63)
    assert paper(replace(wanet, classifier="resnet34", defense="none")) is None
    assert len(TABLE_5_TINY) == 50 and len(TABLE_6_VGG19) == len(TABLE_7_RESNET34) == 30


def test_levels_are_means_over_the_group():
    row = evaluate([victim()], [NO_DEFENSE], signs()).rows[0]
    rows = [
        replace(row, victim="a", attack="bpp", defense="t1=5", ca=wilson(10, 10)),
        replace(row, victim="b", attack="wanet", defense="t1=5", ca=wilson(5, 10)),
        replace(row, victim="c", attack="badnets", defense="t1=5", ca=wilson(0, 10)),  # a visible one
        replace(row, victim="c", attack="badnets", defense="t2=40", ca=wilson(9, 10)),
    ]
    lines = render_levels(rows).splitlines()[2:]
    assert lines[0] == "| t1=5 | 2 | 75.0 | 0.0 | 100.0 | 92.1 / 62.5 / 27.6 |"
    assert lines[1].startswith("| t2=40 | 1 | 90.0 |")


def test_the_line_under_a_table_names_each_environment_once_with_its_commits():
    one = {"hardware": "A", "torch": "2", "sampdetox-transforms": "1", "commit": "aa"}
    other = {**one, "hardware": "B", "commit": ""}
    text = all_in_words([one, {**one, "commit": "bb"}, one, other, other])
    assert text == "A, torch 2, sampdetox-transforms 1 (aa, bb); B, torch 2, sampdetox-transforms 1"


def test_published_settings_name_a_folder_of_weights_by_its_last_name(tiny):
    denoiser = load_denoiser(tiny)
    assert denoiser.source == str(tiny) and source_of(denoiser) == tiny.name
    assert source_of(load_denoiser("bundled")) == "bundled"
