"""Names, repositories and folders told apart, and what else ``weights`` may be."""

import json

import pytest
from conftest import UnitPrior
from torch import nn
from unet_configs import DDPM_CIFAR10

from sampdetox_transforms import DetoxWeights, Schedule, WeightsFileError, load_denoiser
from sampdetox_transforms.networks.catalogue import parse_weights
from sampdetox_transforms.networks.checkpoints import CONFIG, SAFETENSORS, schedule_from_config
from sampdetox_transforms.networks.hub import HubRepo
from sampdetox_transforms.networks.unet_config import UNetConfig

LINEAR = Schedule.named("linear")


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("bundled", DetoxWeights.BUNDLED),
        ("BUNDLED", DetoxWeights.BUNDLED),
        ("Ddpm-Cifar10-32", DetoxWeights.DDPM_CIFAR10_32),
        ("ddpm_cifar10_32", DetoxWeights.DDPM_CIFAR10_32),
        ("default", DetoxWeights.DDPM_CIFAR10_32),
        ("google/ddpm-cifar10-32", DetoxWeights.DDPM_CIFAR10_32),
    ],
)
def test_names_are_taken_in_any_case(text, member):
    assert parse_weights(text) is member


def test_default_weights_are_pinned():
    meta = DetoxWeights.DEFAULT.meta
    assert DetoxWeights.DEFAULT is DetoxWeights.DDPM_CIFAR10_32
    assert (meta.repo, meta.licence) == ("google/ddpm-cifar10-32", "Apache-2.0")
    assert meta.revision == "267b167dc01f0e4e61923ea244e8b988f84deb80"
    assert meta.sha256[SAFETENSORS] == "1558dbe3fb093b0857d473e376b711eeda1b186c557be5e85b3a56300cd49f0f"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("user/repo", "user/repo", None),
        ("user-1/re.po_2@main", "user-1/re.po_2", "main"),
        ("user/repo@refs/pr/1", "user/repo", "refs/pr/1"),
        ("user/repo@" + "a" * 40, "user/repo", "a" * 40),
    ],
)
def test_repository_is_told_from_its_revision(text, repo, revision):
    assert parse_weights(text) == HubRepo(repo, revision)
    assert str(parse_weights(text)) == text


def test_folder_comes_before_a_repository_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "repo").mkdir(parents=True)
    assert parse_weights("user/repo") == (tmp_path / "user" / "repo").relative_to(tmp_path)
    (tmp_path / "google" / "ddpm-cifar10-32").mkdir(parents=True)
    assert parse_weights("google/ddpm-cifar10-32") == (tmp_path / "google" / "ddpm-cifar10-32").relative_to(tmp_path)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("bundeld", "Did you mean BUNDLED"),
        ("ddpm-cifar10", "Did you mean DDPM_CIFAR10_32"),
        ("zzz", "weights='bundled' needs no network"),
        ("user/repo@", "weights='bundled' needs no network"),
        ("a/b/c", "'user/repo[@revision]'"),
        ("user/re po", "'user/repo[@revision]'"),
        ("../nowhere", "an existing folder"),
        ("/nowhere/at/all", "an existing folder"),
        ("", "an existing folder"),
    ],
)
def test_text_that_names_nothing_is_refused_with_a_hint(text, hint):
    with pytest.raises(ValueError, match="weights must be one of") as caught:
        parse_weights(text)
    assert hint in str(caught.value) and repr(text) in str(caught.value)


def test_folder_that_is_not_there_is_a_file_error(tmp_path):
    with pytest.raises(WeightsFileError, match="nowhere"):
        load_denoiser(tmp_path / "nowhere")
    with pytest.raises(WeightsFileError, match=CONFIG):
        load_denoiser(tmp_path)


def test_denoiser_is_taken_as_it_is(fast_denoiser):
    assert load_denoiser(fast_denoiser) is fast_denoiser


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda x_t, t: x_t, r"must come with the schedule.*weights=\(network, 'linear'\)"),
        (nn.Identity(), "must come with the schedule.*got Identity alone"),
        ((UnitPrior(), 3), "must be a Schedule.*got int"),
        (3, "weights must be.*got int"),
        (None, "weights must be.*got NoneType"),
        (("network", "linear"), "weights must be.*got tuple"),
    ],
)
def test_what_is_no_denoiser_is_a_type_error(weights, message):
    with pytest.raises(TypeError, match=message):
        load_denoiser(weights)


@pytest.mark.parametrize(
    "revision", ["../../../../X", "a/../b", "/etc", "a/", "a//b", ".git", "a/.b", "a.", "é", "x" * 201]
)
def test_revision_that_could_not_be_one_is_refused(revision):
    with pytest.raises(ValueError, match=r"a revision must be a branch.*got .*Copy it"):
        parse_weights(f"user/repo@{revision}")
    with pytest.raises(ValueError, match="a revision must be a branch"):
        HubRepo("user/repo", revision)


@pytest.mark.parametrize("repo", ["repo", "../repo", "user/../repo", "/user/repo", "user/re po", "u/" + "x" * 97, ""])
def test_repository_name_that_could_not_be_one_is_refused(repo):
    with pytest.raises(ValueError, match=r"a repository must be named 'user/repo', got .*Copy it"):
        HubRepo(repo)


def test_default_weights_are_pinned_to_what_the_files_on_the_hub_say():
    """The 699 and 256 bytes of google/ddpm-cifar10-32."""
    scheduler = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
    }
    assert [len(json.dumps(content, indent=2) + "\n") for content in (DDPM_CIFAR10, scheduler)] == [699, 256]
    meta = DetoxWeights.DEFAULT.meta
    assert UNetConfig.from_dict(DDPM_CIFAR10) == meta.architecture
    assert schedule_from_config(scheduler) == meta.schedule
