"""``sampdetox demo`` is wired to the demo of the laboratory."""

import sys
import types


def test_demo_is_wired(run, tmp_path, monkeypatch):
    def run_demo(out, *, seed, device, progress):
        progress("white square")
        out.write_text(f"{seed} {device}")
        return "the table"

    monkeypatch.setitem(sys.modules, "sampdetox_transforms.lab.demo.demo", types.SimpleNamespace(run_demo=run_demo))
    status, out, err = run("demo", "-o", tmp_path / "x.png", "--seed", 5, "--device", "cpu")
    assert status == 0 and out.startswith("the table\n") and "x.png" in out and "white square" in err
    assert (tmp_path / "x.png").read_text() == "5 cpu"
    assert "Not a directory" in run("demo", "-o", tmp_path / "x.png/y.png")[2]
