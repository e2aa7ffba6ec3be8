"""The programs that measure loaders, memory and operations: each on few images and a tiny network."""

import json

from sampdetox_transforms.lab.speed import loaders, memory, operations


def test_transforms_in_workers_beside_a_loader_that_purifies(tiny, tmp_path):
    out = tmp_path / "speed"
    small = ["--weights", str(tiny), "--workers", "0", "--n", "5", "--batch-size", "2", "--device", "cpu"]
    loaders.main([*small, "--out", str(out)])
    (row,) = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert row["workers"] == 0 and row["transform"] > 0 and row["DetoxLoader"] > 0
    assert "| 0 |" in out.with_suffix(".md").read_text()


def test_peak_memory_by_input(tiny, tmp_path):
    out = tmp_path / "memory"
    small = ["--weights", str(tiny), "--preset", "ddim", "--side", "24", "--many", "70", "--device", "cpu"]
    memory.main([*small, "--out", str(out)])
    found = json.loads(out.with_suffix(".json").read_text())
    assert [row["input"] for row in found["rows"]] == ["idle", "1 of 24x24", "64 of 32x32", "70 of 32x32"]
    assert found["preset"] == "ddim" and all(row["seconds"] >= 0 for row in found["rows"])
    assert "| 70 of 32x32 |" in out.with_suffix(".md").read_text()


def test_the_operations_that_take_the_time(tiny, tmp_path, capsys):
    out = tmp_path / "operations"
    small = ["--weights", str(tiny), "--preset", "ddim", "--batch-size", "2", "--device", "cpu"]
    operations.main([*small, "--out", str(out)])
    lines = out.with_suffix(".md").read_text().splitlines()
    assert lines == capsys.readouterr().out.splitlines()[: len(lines)]
    shares = [float(line.split("|")[4].strip().rstrip("%")) for line in lines[2:12]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 101
