"""``sampdetox victim``, called in-process on flat pictures."""

import json
from dataclasses import fields

from sampdetox_transforms.cli import victim as cli
from sampdetox_transforms.lab.victims.config import VictimConfig
from sampdetox_transforms.lab.victims.victim import load_victim

SIZE = 16


def test_a_victim_with_settings_of_the_attack(victim):
    about = load_victim(victim).about
    assert about["settings"] == {"size": 4, "pattern": "checker"}
    assert (about["poison_rate"], about["target_label"], about["size"]) == (0.5, 0, SIZE)


def test_victim_measures_and_says_what_comes_next(run, folder, tmp_path, quick):
    status, text, _ = run("victim", folder, tmp_path / "v", *quick, "--test", folder, "--poison-rate", 0.5)
    assert status == 0
    assert f"sampdetox evaluate {tmp_path / 'v'} --data" in text
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["CA", "PA", "ASR"]
    assert text.count("of 16") == 2
    again, text, _ = run("victim", folder, tmp_path / "v", *quick, "--test", folder)
    assert again == 0 and "ASR" in text  # measured, not trained again
    status, _, error = run("victim", folder, tmp_path / "v", *quick)
    assert status == 2 and "must be a new folder" in error


def test_victim_refuses(run, folder, tmp_path, quick):
    status, _, error = run("victim", folder, folder / "inside", *quick)
    assert status == 2 and "OUT must be outside of DATA" in error
    status, _, error = run("victim", folder, tmp_path / "v", *quick, "--set", "size")
    assert status == 2 and "must be NAME=VALUE" in error
    status, _, error = run("victim", folder, tmp_path / "v", *quick, "--attack", "badnet")
    assert status == 2 and "Did you mean 'badnets'" in error
    assert not (tmp_path / "v").exists()


def test_options_have_the_librarys_defaults(run, tmp_path, monkeypatch):
    """All of them reach the config, those with a default too."""
    seen = []
    monkeypatch.setattr(cli, "train_and_measure", lambda config, *rest: seen.append(config) or {})
    assert run("victim", "data", tmp_path / "out", "--device", "cpu")[0] == 0
    given = {"--target-label": "none", "--attack": "wanet", "--poison-rate": 0.25, "--mode": "all2all", "--seed": 8}
    given |= {"--robust-noise": 0.5, "--classifier": "vgg19", "--size": 48, "--epochs": 2, "--batch-size": 3}
    given |= {"--learning-rate": 0.5, "--weight-decay": 0.125, "--crop": 0, "--surrogate": "s", "--picture": "p"}
    given |= {"--rotate": 12.5, "--brightness": 0.25}
    flat = [part for item in given.items() for part in item]
    settings = ("--set", "strength=0.5", "k=7")
    switches = ("--flip", "--fresh-covers", "--bf16", "--device", "cpu")
    assert run("victim", "data", tmp_path / "out", *flat, *settings, *switches)[0] == 0
    assert seen[0] == VictimConfig(data="data")
    changed = dict(zip((name[2:].replace("-", "_") for name in given), given.values(), strict=True))
    changed |= {
        "target_label": None,
        "flip": True,
        "fresh_covers": True,
        "bf16": True,
        "settings": {"strength": 0.5, "k": 7},
    }
    assert seen[1] == VictimConfig(data="data", **changed)
    assert set(changed) == {field.name for field in fields(VictimConfig)} - {"data"}


def test_the_measurement_as_json(run, folder, tmp_path, quick):
    command = ("victim", folder, tmp_path / "v", *quick, "--test", folder, "--poison-rate", 0.5)
    status, text, _ = run(*command, "--json")
    found = json.loads(text)
    assert status == 0 and set(found) == {"out", "CA", "PA", "ASR"}
    assert 0 <= found["ASR"]["low"] <= found["ASR"]["value"] <= found["ASR"]["high"] <= 1 and found["ASR"]["n"] == 16


def test_settings_are_numbers_truths_or_names():
    assert [cli.setting(text) for text in ("a=1", "b=0.5", "c=true", "d=x=y")] == [
        *(("a", 1), ("b", 0.5), ("c", True), ("d", "x=y"))
    ]
