"""``sampdetox weights``: what is there, fetched and verified."""

import json
from pathlib import Path

from cli_pictures import files

from sampdetox_transforms.networks import catalogue, hub
from sampdetox_transforms.networks.catalogue import DetoxWeights
from sampdetox_transforms.networks.checkpoints import SAFETENSORS
from sampdetox_transforms.networks.hub import DownloadError


def test_weights_list(run, monkeypatch):
    def absent(repo, **options):
        assert options["local_files_only"], "the list must not download"
        raise DownloadError

    monkeypatch.setattr(hub, "fetch", absent)
    status, out, _ = run("weights", "list")
    assert status == 0
    assert "ddpm_cifar10_32 (default)" in out and "google/ddpm-cifar10-32" in out and "not yet" in out
    assert "bundled" in out and "in package" in out and "Apache-2.0" in out
    monkeypatch.setattr(hub, "fetch", lambda repo, **options: Path("/cache"))
    assert "cached" in run("weights", "list")[1]


def test_weights_fetch_checks_the_hash_of_what_is_pinned(run, weights, monkeypatch):
    asked = []

    def fetched(repo, **options):
        asked.append(str(repo))
        return Path(weights)

    monkeypatch.setattr(hub, "fetch", fetched)
    status, out, err = run("weights", "fetch", "some/one@v1")
    assert (status, out.strip(), err) == (0, weights, "")
    status, out, err = run("weights", "fetch", "ddpm-cifar10-32")
    assert (status, out) == (2, "") and DetoxWeights.DEFAULT.meta.sha256[SAFETENSORS] in err
    assert asked == ["some/one@v1", f"google/ddpm-cifar10-32@{DetoxWeights.DEFAULT.meta.revision}"]
    assert "is here already" in run("weights", "fetch", weights)[2]
    assert run("weights", "fetch", "bundled")[1].strip() == str(catalogue.BUNDLED_FOLDER)


def test_weights_verify(run, weights, tmp_path, monkeypatch):
    status, out, _ = run("weights", "verify", weights)
    assert status == 0 and "1 to 160 of the linear schedule" in out
    for name in files(Path(weights)):
        (tmp_path / name).write_bytes((Path(weights) / name).read_bytes())
    (tmp_path / SAFETENSORS).write_bytes((Path(weights) / SAFETENSORS).read_bytes()[:-9])
    status, _, err = run("weights", "verify", tmp_path)
    assert status == 2 and "must be a whole safetensors file" in err
    monkeypatch.setattr(catalogue, "BUNDLED_FOLDER", Path(weights))
    status, _, err = run("weights", "verify", "bundled")
    assert status == 2 and any(sha256 in err for sha256 in DetoxWeights.BUNDLED.meta.sha256.values())


def test_json(run, weights, monkeypatch):
    def absent(repo, **options):
        raise DownloadError

    monkeypatch.setattr(hub, "fetch", absent)
    status, out, err = run("weights", "list", "--json")
    listed = {member["name"]: member for member in json.loads(out)["weights"]}
    assert (status, err) == (0, "") and set(listed) == {"ddpm_cifar10_32", "bundled"}
    assert listed["ddpm_cifar10_32"]["default"] and listed["ddpm_cifar10_32"]["here"] == "not yet"
    assert listed["bundled"]["here"] == "in package"
    assert listed["bundled"]["sha256"] == DetoxWeights.BUNDLED.meta.sha256
    status, out, err = run("weights", "verify", "bundled", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "") and found["pinned"] is True and found["max_level"] == 160
    assert found["sha256"] == listed["bundled"]["sha256"][SAFETENSORS]
    assert json.loads(run("weights", "verify", weights, "--json")[1])["pinned"] is False
