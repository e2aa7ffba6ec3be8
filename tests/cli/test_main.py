"""The program itself: help without heavy modules, completion, usage errors, exit statuses."""

import json
import os
import resource
import subprocess
import sys

import pytest
from cli_pictures import colours, save

from sampdetox_transforms import __version__
from sampdetox_transforms.cli import shared
from sampdetox_transforms.cli.purify import command as purify

COMMANDS = ("demo", "purify", "inspect", "app", "calibrate", "train", "victim", "evaluate", "benchmark", "weights")

HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "huggingface_hub", "jinja2", "rich", "tqdm"}


def program(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    """``python -m sampdetox_transforms``, in a process of its own."""
    command = [sys.executable, "-m", "sampdetox_transforms", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environ})


def test_the_module_is_a_program():
    done = program("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sampdetox {__version__}\n", "")
    assert program("purify").returncode == 2


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("weights", "list"), ("weights", "verify")])
def test_help_loads_none_of_the_heavy_modules(command):
    code = "import sys; from sampdetox_transforms.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *command, "-h"], capture_output=True, text=True, check=True)
    text, modules = done.stdout.rsplit("\n", 2)[:2]
    assert text.startswith(f"Usage: {' '.join(['sampdetox', *command])} ") and "--help" in text
    assert not HEAVY & set(modules.split())


def test_help_is_there_in_half_a_second():
    """Of a processor's time, at best of three: a machine that does other things takes longer by the clock."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert program("purify", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


def test_no_command_prints_help(run):
    status, out, err = run()
    assert (status, out) == (2, "")
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "weights"])
def test_every_option_says_its_default(run, command):
    status, out, _ = run(command, "--help")
    options = out.split("Options:\n")[1].split("\n\n")[0]
    entries = [" ".join(entry.split()) for entry in options.split("\n  -")]
    assert status == 0 and len(entries) > 3
    assert [entry for entry in entries if "[default: " not in entry and "[required]" not in entry] == [
        entry for entry in entries if entry.endswith("Show this message and exit.")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("purfy",), "No such command 'purfy'. Did you mean 'purify'? Try 'sampdetox --help'."),
        (("purify",), "Missing argument 'IN'. Try 'sampdetox purify --help'."),
        (("purify", "a", "b", "--sede", "1"), "No such option: --sede (Possible options: --"),
        (("purify", "a", "b", "c"), "unexpected extra argument"),
        (("purify", "a", "b", "--seed", "1.5"), "Invalid value for '--seed'"),
        (("purify", "a", "b", "--t1", "low"), "Invalid value for '--t1'"),
        (("purify", "a", "b", "--dtype", "float16"), "Invalid value for '--dtype'"),
        (("purify", "a", "b", "--report"), "Option '--report' requires an argument. Try"),
        (("purify", "a", "b", "--over"), "No such option: --over"),
        (("weights",), "Missing command. Try 'sampdetox weights --help'."),
        (("victim", "a"), "Missing argument 'OUT'. Try"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("sampdetox: error: ") and message in err and err.endswith("--help'.\n")


def test_expected_errors_are_one_line_without_a_traceback():
    done = program("purify", "absent\n\x1b[31m", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sampdetox: error: IN must be") and done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_what_is_not_expected_is_not_hidden(run, monkeypatch, tmp_path):
    def fault(*args):
        raise KeyError("a fault of ours")

    monkeypatch.setattr(purify, "prepare", fault)
    with pytest.raises(KeyError, match="a fault of ours"):
        run("purify", tmp_path, tmp_path / "out")


def test_an_interrupt_is_130(run, monkeypatch, tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(purify, "prepare", interrupt)
    status, out, err = run("purify", tmp_path, tmp_path / "out")
    assert (status, out, err) == (130, "", "sampdetox: interrupted; what is finished is kept\n")


def test_nothing_of_the_logging_is_left_behind(run, weights, tmp_path):
    source = save(tmp_path / "a.png", colours())
    for _ in range(3):
        run("purify", source, tmp_path / "b.png", "--weights", weights, "-vv", "--overwrite")
    assert not shared.LOG.handlers
    _, _, err = run("purify", source, tmp_path / "b.png", "--weights", weights, "-v", "--overwrite")
    assert err.count("is purified") == 1


# Shell completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sampdetox pur", ["purify"]),
        ("sampdetox weights ", ["list", "fetch", "verify"]),
        ("sampdetox purify --preset pa", ["paper", "paper-linear"]),
        ("sampdetox evaluate --defense none sampdetox --exp", ["--experiment"]),
        ("sampdetox purify --dtype b", ["bfloat16"]),
    ],
)
def test_the_shell_completes(words, expected):
    count = len(words.split(" ")) - 1
    done = program(_SAMPDETOX_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(count))
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, expected, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_installed(shell, tmp_path):
    detected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    shown = program("--show-completion", shell, **detected)
    assert shown.returncode == 0 and "_SAMPDETOX_COMPLETE" in shown.stdout
    assert not list(tmp_path.rglob("*"))
    assert program("--install-completion", shell, **detected).returncode == 0
    installed = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_SAMPDETOX_COMPLETE" in text for text in installed)


def test_the_entry_point_is_the_function_that_the_module_calls():
    from pathlib import Path

    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'sampdetox = "sampdetox_transforms.cli.main:main"' in project
    assert json.loads(program("weights", "list", "--json").stdout)["weights"]
