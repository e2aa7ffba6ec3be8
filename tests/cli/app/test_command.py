"""``sampdetox app`` listens on loopback unless told otherwise, and says what is wrong before it loads anything."""

import socket
import sys
import types

import pytest

from sampdetox_transforms.cli.app import command


@pytest.fixture
def served(monkeypatch):
    """What uvicorn would have been asked to serve, instead of serving it."""
    calls = []
    monkeypatch.setattr(command, "find_spec", lambda name: True)
    fake = types.SimpleNamespace(run=lambda app, **options: calls.append((app, options)))
    monkeypatch.setitem(sys.modules, "uvicorn", fake)
    server = types.SimpleNamespace(make_app=lambda detox, **options: (detox, options))
    monkeypatch.setitem(sys.modules, "sampdetox_transforms.cli.app.server", server)
    monkeypatch.setattr(command, "make_detox", lambda **settings: settings)
    return calls


def test_it_listens_on_loopback_and_says_where(run, served):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    status, out, _ = run("app", "--port", port, "--seed", 7)
    (((detox, options), address),) = served
    assert status == 0 and f"http://127.0.0.1:{port}" in out
    assert detox["weights"] == "bundled" and detox["seed"] == 7
    assert options["host"] == address["host"] == "127.0.0.1" and address["port"] == port


def test_a_trigger_is_handed_to_the_transform(run, served, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for given, handed in (((), None), (("--trigger", tmp_path / "t.safetensors"), tmp_path / "t.safetensors")):
        assert run("app", "--port", port, *given)[0] == 0
        assert served.pop()[0][0]["trigger"] == handed


def test_a_port_that_is_taken_or_wrong_is_refused(run, served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = run("app", "--port", taken.getsockname()[1])
    assert status == 2 and "--port must be free" in err
    assert "65535" in run("app", "--port", 70000)[2]
    assert "1 or more" in run("app", "--port", 0)[2]
    assert not served


def test_without_the_extra_it_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    status, _, err = run("app")
    assert status == 2 and "pip install" in err and "[app]" in err
