"""Weights from the Hub, against a server on loopback: downloads, the cache, pins, and everything that can fail."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_tiny
from hub_server import HubServer, Loader

from sampdetox_transforms import DetoxWeights, __version__
from sampdetox_transforms.networks.checkpoints import CONFIG, LEVELS, PICKLED, SAFETENSORS, SCHEDULER, read_checkpoint
from sampdetox_transforms.networks.hub import DownloadError, HubRepo, fetch

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="loads run in forks, which this system does not have")
REPO = "user/tiny"


@pytest.fixture(scope="module")
def loader():
    loader = Loader()
    yield loader
    loader.close()


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.stop()


@pytest.fixture
def load(loader, hub, tmp_path):
    """``load(weights, env=..., pin=..., **options)`` in a process whose Hub and cache are this test's own."""

    def run(weights: str | None, *, env: dict | None = None, pin: dict | None = None, **options) -> dict:
        hub.requests.clear()
        base = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return loader.load(weights, env=base | (env or {}), options=options, pin=pin)

    return run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[dict[str, bytes]]:
    """The files of two checkpoints of different weights, without ``sampdetox.json``, as on the Hub."""
    folders = [write_tiny(tmp_path_factory.mktemp("hub"), seed=seed) for seed in (1, 2)]
    return [{name: (folder / name).read_bytes() for name in (CONFIG, SCHEDULER, SAFETENSORS)} for folder in folders]


@pytest.fixture(scope="module")
def files(checkpoints) -> dict[str, bytes]:
    return checkpoints[0]


def local_sum(files: dict[str, bytes], folder: Path) -> float:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sum(float(value.double().sum()) for value in read_checkpoint(folder).state_dict().values())


def pickled(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """The same checkpoint with a ``.bin`` in place of the safetensors file."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch.save(read_checkpoint(folder).network.state_dict(), folder / PICKLED)
    return {name: (folder / name).read_bytes() for name in (CONFIG, SCHEDULER, PICKLED)}


def pipeline(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same checkpoint in the layout of a diffusers pipeline."""
    folder = {CONFIG: "unet", SCHEDULER: "scheduler", SAFETENSORS: "unet", PICKLED: "unet"}
    return {f"{folder[name]}/{name}": content for name, content in files.items()} | {"model_index.json": b"{}"}


def in_layout(layout: str, files: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    if layout == "flat":
        return files
    return pipeline(files) if layout == "pipeline" else pickled(files, tmp_path / "pickled")


def assert_download_error(result: dict, *parts: str) -> None:
    """A DownloadError, which is an OSError, whose message holds every part."""
    assert result.get("error", [])[:1] == ["DownloadError"] and "OSError" in result["error"], result
    for part in parts:
        assert part in result["message"]


def test_no_other_traceback_stands_before_the_message(tmp_path):
    """Those of huggingface_hub and its HTTP library have ninety lines."""
    with pytest.raises(DownloadError, match="needs no network") as caught:
        fetch(HubRepo(REPO), cache_dir=tmp_path, local_files_only=True)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_download_reads_the_published_weights_and_no_other_file(hub, load, files, tmp_path):
    hub.publish(REPO, files | {"README.md": b"-", PICKLED: b"-", "model.onnx": b"-"})
    result = load(REPO)
    assert result["source"] == REPO
    assert result["weights"] == local_sum(files, tmp_path / "local")
    assert sorted(hub.asked("GET")) == sorted(files)
    assert {request.repo for request in hub.requests} == {REPO}
    assert f"sampdetox-transforms/{__version__}" in hub.requests[0].headers["user-agent"]


def test_second_load_downloads_nothing(hub, load, files):
    hub.publish(REPO, files)
    first = load(REPO)
    assert hub.asked("GET")
    assert load(REPO) == first
    assert hub.asked("GET") == []


@pytest.mark.parametrize("pinned", [False, True])
def test_cached_weights_load_while_the_server_is_down(hub, load, files, pinned):
    commit = hub.publish(REPO, files)
    weights = f"{REPO}@{commit}" if pinned else REPO
    first = load(weights)
    hub.stop()
    assert load(weights)["weights"] == first["weights"]


def test_cached_weights_of_a_pinned_commit_need_no_server(hub, load, files):
    """A commit cannot change: that the Hub has no sampdetox.json in it, as for the default weights, is cached too."""
    commit = hub.publish(REPO, files)
    load(f"{REPO}@{commit}")
    load(f"{REPO}@{commit}")
    assert hub.requests == []
    hub.stop()
    assert load(f"{REPO}@{commit}")["waited"] == 0


def test_revision_is_the_one_that_is_asked_for(hub, load, checkpoints):
    commits = [hub.publish(REPO, files) for files in checkpoints]
    hub.publish(REPO, checkpoints[0], branch="v1")
    old, new, branch = load(f"{REPO}@{commits[0]}"), load(REPO), load(f"{REPO}@v1")
    assert old["weights"] == branch["weights"] != new["weights"]
    assert old["source"] == f"{REPO}@{commits[0]}"
    assert load(f"{REPO}@{commits[1]}")["weights"] == new["weights"]


def test_branch_is_asked_anew_for_what_it_did_not_have(hub, load, files):
    hub.publish(REPO, pipeline(files))
    assert load(REPO)["max_level"] == 1000
    hub.publish(REPO, files | {LEVELS: b'{"max_level": 120}'})
    assert load(REPO).get("max_level") == 120


def test_default_weights_ask_for_exactly_the_pinned_commit(hub, load, files):
    pinned = DetoxWeights.DEFAULT.meta
    true_json = {CONFIG: json.dumps(pinned.architecture.to_dict()).encode(), SCHEDULER: b'{"clip_sample": true}'}
    hub.publish(pinned.repo, files)
    hub.publish(pinned.repo, files | true_json, branch="other", commit=pinned.revision)
    result = load(None)
    assert {(r.repo, r.revision) for r in hub.requests} == {("google/ddpm-cifar10-32", pinned.revision)}
    assert result["error"][0] == "WeightsFileError" and "OSError" in result["error"]
    for sha256 in (pinned.sha256[SAFETENSORS], hashlib.sha256(files[SAFETENSORS]).hexdigest()):
        assert sha256 in result["message"]


@pytest.mark.parametrize(
    ("name", "content"),
    [(CONFIG, {"norm_eps": 1e-5}), (SCHEDULER, {"beta_end": 0.03}), (LEVELS, {"max_level": 10})],
)
def test_every_file_of_the_default_weights_is_pinned(hub, load, files, name, content):
    """Of the two JSON files no hash is known: what they say is compared."""
    pinned = DetoxWeights.DEFAULT.meta
    true_json = {CONFIG: pinned.architecture.to_dict(), SCHEDULER: {}}
    altered = json.dumps(true_json.get(name, {}) | content).encode()
    all_files = files | {name: json.dumps(value).encode() for name, value in true_json.items()} | {name: altered}
    hub.publish(pinned.repo, all_files, commit=pinned.revision)
    result = load(None)
    assert result["error"][0] == "WeightsFileError" and name in result["message"]
    assert "from a source that you trust" in result["message"] and "sha256" not in result["message"]


def test_named_weights_load_with_the_right_hash_and_not_with_another(hub, load, files, tmp_path):
    content = files[SAFETENSORS]
    commit = hub.publish("google/ddpm-cifar10-32", files)
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    pin = {"revision": commit, "sha256": sha256, "architecture": None, "schedule": None}
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    hub.tampered = {SAFETENSORS: flipped}
    result = load("ddpm-cifar10-32", pin=pin, cache_dir=str(tmp_path / "tampered"))
    assert result["error"][0] == "WeightsFileError"
    for part in (sha256[SAFETENSORS], hashlib.sha256(flipped).hexdigest(), "fetch it anew"):
        assert part in result["message"]
    hub.tampered = {}
    assert load("ddpm_cifar10_32", pin=pin)["source"] == "google/ddpm-cifar10-32"
    for name in files:
        other = pin | {"sha256": sha256 | {name: "0" * 64}}
        result = load("ddpm_cifar10_32", pin=other)
        assert result["error"][0] == "WeightsFileError" and f"{name} must have the sha256 0000" in result["message"]


def test_server_down_says_what_was_wanted_and_what_to_do(hub, load, tmp_path):
    hub.stop()
    commit = "0" * 40
    result = load(f"{REPO}@{commit}")
    assert_download_error(result, REPO, commit, hub.url, str(tmp_path / "home"))
    assert_download_error(result, f"sampdetox weights fetch {REPO}@{commit}", "HF_HOME", "weights='bundled'")
    assert_download_error(load(REPO), "Revision main")
    pinned = DetoxWeights.DEFAULT.meta
    assert_download_error(load(None), f"sampdetox weights fetch {pinned.repo}@{pinned.revision}")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_server_error_is_tried_again_for_a_few_seconds_and_said(hub, load, files, status):
    hub.publish(REPO, files)
    hub.failing = {CONFIG: status}
    result = load(REPO)
    assert_download_error(result, REPO, hub.url, "weights='bundled'", str(status))
    assert result["waited"] <= 3 and hub.asked("HEAD") == [CONFIG] * 3
    for number in (2, 3):
        assert any(f"answers {status}" in line and f"attempt {number - 1} of 3" in line for line in result["logged"])


def test_server_that_recovers_is_waited_for(hub, load, files):
    hub.publish(REPO, files)
    hub.failing, hub.failures = {CONFIG: 500}, 1
    result = load(REPO)
    assert result["source"] == REPO and 0 < result["waited"] <= 1


def test_server_error_where_the_cache_has_the_files_is_not_waited_for_but_said(hub, load, files):
    hub.publish(REPO, files)
    first = load(REPO)
    hub.failing = dict.fromkeys([*files, LEVELS], 500)
    result = load(REPO)
    assert result["weights"] == first["weights"] and result["waited"] == 0
    assert any("the file in the cache is taken" in line for line in result["logged"])


# What a hostile server or a hostile name may not do


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "revision", ["../../../../X", "a/../../b", "/etc", "a//b", ".hidden", "a/.git", "x" * 300, "a b"]
)
def test_revision_that_would_leave_the_cache_is_refused_unasked(hub, load, files, tmp_path, revision):
    hub.publish(REPO, files)
    before = written(tmp_path)
    result = load(f"{REPO}@{revision}")
    assert result["error"][0] == "ValueError" and "Copy it from the repository's page" in result["message"]
    assert hub.requests == [] and written(tmp_path) == before


def test_server_that_answers_for_another_commit_is_not_believed(hub, load, checkpoints):
    commit = hub.publish(REPO, checkpoints[0])
    other = hub.publish(REPO, checkpoints[1])
    hub.headers = {"X-Repo-Commit": other}
    result = load(f"{REPO}@{commit}")
    assert_download_error(result, commit, other, "Do not trust it")
    assert hub.asked("GET") == []


def test_branch_that_moves_during_the_download_is_no_mixture(hub, load, checkpoints):
    first, second = (hub.publish(REPO, files) for files in checkpoints)
    hub.headers_of = {SAFETENSORS: {"X-Repo-Commit": first}}
    assert_download_error(load(REPO), first, second, "start again")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Repo-Commit", "../../../../outside"),
        ("X-Repo-Commit", "main"),
        ("ETag", '"../../../../outside"'),
        ("ETag", '".."'),
        ("ETag", '"' + "a" * 500 + '"'),
    ],
)
@pytest.mark.parametrize("absent", [False, True])
def test_headers_that_would_leave_the_cache_are_refused(hub, load, files, tmp_path, header, value, absent):
    hub.publish(REPO, {} if absent else files)
    hub.headers = {header: value}
    result = load(REPO)
    assert result["error"][0] == "DownloadError"
    if not (absent and header == "ETag"):
        assert value.strip('"')[:100] in result["message"], result
    assert not list(tmp_path.rglob("*outside*")) and not list(tmp_path.parent.glob("*outside*"))


@pytest.mark.parametrize("name", [CONFIG, SCHEDULER, LEVELS])
def test_json_file_of_more_than_a_megabyte_is_refused_before_it_is_downloaded(hub, load, files, name):
    hub.publish(REPO, files | {name: b" " * 2**20 + files.get(name, b"{}")})
    assert_download_error(load(REPO), name, "must have 1048576 bytes or fewer, got 10")
    assert name not in hub.asked("GET")


def test_weights_of_more_than_four_gigabytes_are_refused_before_they_are_downloaded(hub, load, files):
    hub.publish(REPO, files)
    hub.headers_of = {SAFETENSORS: {"X-Linked-Size": str(5 * 2**30)}}
    assert_download_error(load(REPO), SAFETENSORS, f"must have {4 * 2**30} bytes or fewer, got {5 * 2**30}")
    assert SAFETENSORS not in hub.asked("GET")


def test_body_without_end_is_cut_off(hub, load, files, tmp_path):
    """It says that it is small, and then sends on."""
    hub.publish(REPO, files)
    hub.tampered = {CONFIG: b" " * (3 * 2**20)}
    hub.chunked = {CONFIG}
    assert_download_error(load(REPO), CONFIG, "got more from the server")
    assert not list((tmp_path / "home").rglob("*.incomplete"))


@pytest.mark.parametrize("offline", ["HF_HUB_OFFLINE", "local_files_only"])
def test_offline_works_with_a_warm_cache_only(hub, load, files, offline):
    hub.publish(REPO, files)
    how = {"env": {"HF_HUB_OFFLINE": "1"}} if offline == "HF_HUB_OFFLINE" else {"local_files_only": True}
    assert_download_error(load(REPO, **how), REPO, f"sampdetox weights fetch {REPO}", "weights='bundled'")
    assert hub.requests == []
    first = load(REPO)
    result = load(REPO, **how)
    assert result["weights"] == first["weights"] and result["waited"] == 0
    assert hub.requests == []


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("layout", ["pipeline", "pickled"])
def test_offline_works_with_every_layout_that_is_cached(hub, load, files, tmp_path, layout, pinned):
    commit = hub.publish(REPO, in_layout(layout, files, tmp_path))
    weights = f"{REPO}@{commit}" if pinned else REPO
    first = load(weights)
    result = load(weights, env={"HF_HUB_OFFLINE": "1"})
    assert result.get("weights") == first["weights"], result


def test_pipeline_layout_is_read(hub, load, files, tmp_path):
    hub.publish(REPO, pipeline(files))
    assert load(REPO)["weights"] == local_sum(files, tmp_path / "local")
    assert sorted(hub.asked("GET")) == sorted(name for name in pipeline(files) if "/" in name)


def test_pickled_weights_are_read_where_there_is_no_safetensors_file(hub, load, files, tmp_path):
    hub.publish(REPO, pickled(files, tmp_path / "pickled"))
    assert load(REPO)["weights"] == local_sum(files, tmp_path / "local")
    assert PICKLED in hub.asked("GET")


@pytest.mark.parametrize("layout", [dict, pipeline])
def test_levels_file_is_honoured_and_its_absence_means_all_levels(hub, load, files, layout):
    hub.publish("user/some", layout(files) | {LEVELS: b'{"max_level": 120}'})
    hub.publish("user/all", layout(files))
    assert load("user/some")["max_level"] == 120
    assert load("user/all")["max_level"] == 1000


def test_levels_file_that_cannot_be_fetched_is_not_taken_for_absent(hub, load, files):
    """Else a checkpoint would be asked for levels that it does not know, because of one bad moment of the network."""
    hub.publish(REPO, files | {LEVELS: b'{"max_level": 120}'})
    hub.failing = {LEVELS: 503}
    result = load(REPO)
    assert_download_error(result, REPO)
    hub.failing = {}
    assert load(REPO)["max_level"] == 120


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "server down"])
@pytest.mark.parametrize("layout", ["flat", "pipeline", "pickled"])
def test_cache_filled_by_another_tool_works_offline(hub, load, files, tmp_path, layout, how):
    """Other tools do not note which files a repository does not have."""
    hub.publish(REPO, in_layout(layout, files, tmp_path))
    first = load(REPO)
    for folder in (tmp_path / "home").rglob(".no_exist"):
        shutil.rmtree(folder)
    if how == "server down":
        hub.stop()
    result = load(REPO, env={"HF_HUB_OFFLINE": "1"} if how == "HF_HUB_OFFLINE" else None)
    assert result.get("weights") == first["weights"], result


@pytest.mark.parametrize(
    ("weights", "absent"),
    [
        ("user/nobody", "RepositoryNotFoundError"),
        (f"{REPO}@nothing", "RevisionNotFoundError"),
        ("user/unfinished", "EntryNotFoundError"),
        ("user/readme-only", "EntryNotFoundError"),
    ],
)
def test_what_the_hub_does_not_hold_is_a_download_error(hub, load, files, weights, absent):
    hub.publish(REPO, files)
    hub.publish("user/unfinished", {CONFIG: files[CONFIG], SCHEDULER: files[SCHEDULER]})
    hub.publish("user/readme-only", {"README.md": b"-"})
    assert_download_error(load(weights), absent, weights.partition("@")[0], hub.url, "weights='bundled'")


def test_repository_id_that_the_hub_would_not_take_is_refused_unasked(hub, load):
    assert_download_error(load("user/--tiny"), "user/--tiny")
    assert hub.requests == []
    result = load("user/tiny/more")
    assert result["error"][0] == "ValueError" and "'user/repo[@revision]'" in result["message"]


def test_truncated_download_is_an_error_and_the_next_one_begins_anew(hub, load, files, tmp_path):
    hub.publish(REPO, files)
    hub.tampered = {SAFETENSORS: files[SAFETENSORS][:1000]}
    assert_download_error(load(REPO), REPO, "1000")
    assert not list((tmp_path / "home").rglob(SAFETENSORS))
    hub.tampered = {}
    assert load(REPO)["source"] == REPO


def test_file_truncated_on_the_server_is_named(hub, load, files):
    hub.publish(REPO, files | {SAFETENSORS: files[SAFETENSORS][:1000]})
    result = load(REPO)
    assert result["error"][0] == "WeightsFileError" and SAFETENSORS in result["message"]


def test_cache_folder_and_token_are_passed_on(hub, load, files, tmp_path):
    hub.publish(REPO, files)
    load(REPO, cache_dir=str(tmp_path / "elsewhere"), token="hf_secret")
    assert len(list((tmp_path / "elsewhere").rglob(SAFETENSORS))) == 1
    assert not list((tmp_path / "home").rglob(SAFETENSORS))
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.requests)
    load(REPO, cache_dir=str(tmp_path / "third"), token=False)
    assert hub.requests and not any("authorization" in request.headers for request in hub.requests)
