"""Search networks: what a step sees, that it learns, what is held out, resuming, and what a run leaves behind."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from contract import pixels
from safetensors.torch import load_file
from samples import CALIBRATION as CALIBRATION_OF_FAKES
from samples import Killed, seeded
from torchvision.transforms.v2 import functional

from sampdetox_transforms import SampDetox, load_denoiser
from sampdetox_transforms.method.search import Answer
from sampdetox_transforms.networks import restorer as networks
from sampdetox_transforms.networks.restorer import Restorer, RestorerConfig, Specialists
from sampdetox_transforms.networks.restorer_files import CALIBRATION, RESTORER, load_restorer
from sampdetox_transforms.training import drawings
from sampdetox_transforms.training import restorer as training
from sampdetox_transforms.training.config import RestorerTrainingConfig
from sampdetox_transforms.training.data import ImageCrops, list_images
from sampdetox_transforms.training.everything import train_all
from sampdetox_transforms.training.restorer import LOSSES, split, train_restorer
from sampdetox_transforms.training.restorer_batches import dense_batch, light_batch, local_batch

SETTINGS = {"steps": 2, "batch_size": 6, "workers": 0, "bf16": False, "save_every": 1, "held_out": 0.5, "encoders": 1}
TINY_DENOISER = {
    "size": 8,
    "block_out_channels": (8, 8),
    "network": {"norm_num_groups": 4},
    "steps": 2,
    "batch_size": 4,
    "workers": 0,
    "bf16": False,
    "save_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eighty smooth pictures of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(80):
        image = functional.resize(pixels(3, 4, 4, seed=i), [20 + i % 3, 24 + i % 5])
        functional.to_pil_image(image.clamp(0, 1)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def config(folder) -> RestorerTrainingConfig:
    return RestorerTrainingConfig(data=(str(folder),), **SETTINGS)


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    """The networks' widths are a matter of quality only."""
    small = networks.RestorerConfig(widths=(8, 16, 16), down_blocks=(1, 1, 1), up_blocks=(1, 1))
    init = Specialists.__init__
    monkeypatch.setattr(
        Specialists,
        "__init__",
        lambda self, local=None, dense=None, light=None: init(
            self, local or Restorer(small), dense or Restorer(small), light
        ),
    )


@pytest.fixture
def crops(folder) -> ImageCrops:
    return ImageCrops(list_images([folder]), 32, 3, 0.35)


def stop_at(network: str, step: int):
    def progress(name: str, done: int, total: int, loss: float) -> None:
        if (name, done) == (network, step):
            raise Killed

    return progress


# Settings and data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "data must name one folder"),
        ({"batch_size": 5}, "batch_size must be 6 or more"),
        ({"held_out": 0.0}, r"held_out must be in \(0, 0.5\], got 0.0"),
        ({"held_out": 0.6}, "got 0.6"),
        ({"zoom": 0.0}, r"zoom must be in \(0, 1\]"),
        ({"drawn": 1.0}, r"drawn must be in \[0, 1\), got 1.0"),
        ({"false_alarm_rate": 1.0}, r"false_alarm_rate must be in \(0, 1\), got 1.0"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"encoders": -1}, "encoders must be 0 or more, got -1"),
        ({"ema": 1.0}, "ema must be in"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_pictures_of_other_folders_are_mixed_in(config, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="must be a folder"):
        split(replace(config, blend_data=(str(tmp_path / "nowhere"),)))
    (tmp_path / "a.png").touch()
    seen = []
    monkeypatch.setattr(training, "Pictures", lambda folders, side: seen.append((folders, side)))
    train_restorer(replace(config, blend_data=(str(tmp_path),)), tmp_path / "out")
    assert seen == [((str(tmp_path),), 32)]


def test_nothing_is_learnt_from_what_thresholds_are_measured_on(config, folder):
    learnt, measured = split(config)
    assert len(learnt) == len(measured[str(folder)]) == 40 and not set(learnt) & set(measured[str(folder)])
    twice, once = split(replace(config, data=(str(folder), str(folder))))
    assert twice == learnt * 2 and once == measured


def test_too_few_images_are_refused_before_anything_is_made(config, tmp_path):
    with pytest.raises(ValueError, match=r"hold 800 images or more to hold out 40 of them, got 4 held out"):
        train_restorer(replace(config, held_out=0.05), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Batches and losses


def test_a_batch_for_local_triggers(crops):
    batch = local_batch(crops, crops, 18, seeded())
    assert batch.x.shape == batch.target.shape == (21, 3, 32, 32) and batch.erased.shape == (21, 1, 32, 32)
    assert batch.region.shape == batch.unseen.shape == (18, 1, 32, 32)
    assert float(batch.x.abs().max()) <= 1
    assert batch.is_dense.tolist() == [0] * 11 + [1] * 7
    has_region = batch.region.flatten(1).any(dim=1)
    assert not has_region[:6].any() and has_region[6:11].any() and not has_region[11:].any()
    assert not batch.erased[:18].any() and batch.erased[18:].flatten(1).any(dim=1).all()
    assert not (batch.unseen & ~batch.region).any()
    changed = (batch.x - batch.target)[:18].abs().amax(dim=(1, 2, 3))
    assert changed[:6].median() < 0.02 and changed[6:].median() > 0.05
    assert torch.equal(batch.x[18:], batch.target[18:])


def test_a_batch_for_dense_triggers(crops):
    batch = dense_batch(crops, 18, seeded())
    assert batch.x.shape == batch.target.shape == (18, 3, 32, 32)
    assert batch.is_dense.tolist() == [0] * 6 + [1] * 12
    changed = ((batch.x - batch.target).abs() > 0.01).float().mean(dim=(1, 2, 3))
    assert changed[6:].median() > 0.5 > changed[:6].median()


def test_a_batch_for_the_light_denoiser(crops):
    batch = light_batch(crops, 240, seeded())
    assert batch.x.shape == batch.target.shape == batch.noise.shape == (240, 3, 32, 32)
    assert float(batch.x.abs().max()) <= 1
    changed = (batch.x - batch.target).square().mean(dim=(1, 2, 3)).sqrt() * 127.5  # grey levels
    assert not changed[:140].any() and (changed[140:] > 0.5).float().mean() > 0.9 and 2 < changed[140:].median() < 20
    assert abs(float(batch.noise.std()) - 1) < 0.01
    assert 0.02 <= float(batch.sigma.min()) < 0.03 and 0.2 < float(batch.sigma.max()) <= 0.25
    for part in (batch.target, batch.noise):
        grey = (part == part[:, :1]).flatten(1).all(dim=1)
        assert grey[:20].all() and not grey[20:].any()


def test_the_loss_of_the_light_denoiser_is_0_for_the_noise_and_1_for_none(crops):
    batch = light_batch(crops, 24, seeded())
    told = lambda x, sigma: (x - batch.target) / sigma[:, None, None, None]  # noqa: E731
    assert float(LOSSES["light"](told, batch)) < 1e-8
    assert abs(float(LOSSES["light"](lambda x, sigma: torch.zeros_like(x), batch)) - 1) < 0.05
    only_noise = lambda x, sigma: batch.noise  # noqa: E731
    assert 0.05 < float(LOSSES["light"](only_noise, batch)) < 5 / 12


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_so_many_of_the_images_are_drawings(crops, monkeypatch, share):
    marked = torch.zeros(3, 32, 32)
    monkeypatch.setattr(drawings, "draw_pictures", lambda n, side, generator: marked.expand(n, 3, side, side))
    images = torch.cat([training.draw(crops, 100, seeded(seed), share)[0] for seed in range(3)])
    flat = (images.flatten(1) == images.flatten(1)[:, :1]).all(dim=1)  # the folder's pictures are not
    assert abs(float(flat.float().mean()) - share) < 0.08
    made = [dense_batch(crops, 30, seeded(), drawn=0.9), local_batch(crops, crops, 30, seeded(), drawn=0.9)]
    assert all((batch.target.flatten(1).std(dim=1) < 0.01).float().mean() > 0.6 for batch in made)


@pytest.mark.parametrize(
    "make", [lambda c, g: local_batch(c, c, 6, g), lambda c, g: dense_batch(c, 6, g), lambda c, g: light_batch(c, 6, g)]
)
def test_the_generator_decides_a_batch(crops, make):
    first, again, other = (make(crops, seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.x, other.x)


def test_the_losses_of_the_right_answer_are_small(crops):
    local, dense = local_batch(crops, crops, 18, seeded()), dense_batch(crops, 18, seeded())

    def right(batch):
        n = len(batch.is_dense)
        region = torch.zeros(len(batch.x), 1, 32, 32)
        if hasattr(batch, "region"):
            region[:n] = batch.region.float()
        is_dense = torch.zeros(len(batch.x))
        is_dense[:n] = batch.is_dense
        return Answer(40 * region - 20, 40 * is_dense - 20, batch.target)

    assert float(LOSSES["local"](lambda x, erased: right(local), local)) < 0.1
    assert float(LOSSES["dense"](lambda x: right(dense), dense)) < 1e-3

    def wrong(batch):
        answer = right(batch)
        return Answer(-answer.local, -answer.dense, -answer.image)

    assert float(LOSSES["local"](lambda x, erased: wrong(local), local)) > 20
    assert float(LOSSES["dense"](lambda x: wrong(dense), dense)) > 10


@pytest.mark.parametrize("name", ["local", "dense"])
def test_steps_lower_the_loss_of_a_fixed_batch(crops, name):
    batch = {
        "local": lambda: local_batch(crops, crops, 12, seeded()),
        "dense": lambda: dense_batch(crops, 12, seeded()),
    }
    network, fixed = Restorer(RestorerConfig(widths=(8, 16, 16))), batch[name]()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = LOSSES[name](network, fixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# Runs


def test_what_a_run_leaves_behind(config, folder, tmp_path):
    steps = []
    out = train_restorer(config, tmp_path / "out", progress=lambda *args: steps.append(args))
    assert sorted(path.name for path in out.iterdir()) == sorted([RESTORER, CALIBRATION, "training.json"])
    assert [args[:3] for args in steps] == [
        (name, step + 1, 8)
        for step, name in enumerate(["encoders"] * 2 + ["local"] * 2 + ["dense"] * 2 + ["light"] * 2)
    ]
    restorer, calibration = load_restorer(out)
    assert calibration.images == 40 and calibration.data.endswith(folder.name) and calibration.false_alarm_rate == 0.05
    answer = restorer(torch.zeros(1, 3, 32, 32))
    assert answer.dense.shape == (1,) and not any(part.isnan().any() for part in answer)
    told = (out / "training.json").read_text()
    assert set(json.loads(told)["training"]) == {field.name for field in fields(config)}
    assert str(folder.parent) not in told, "it tells of folders on the machine it came from"
    with pytest.raises(ValueError, match="finished weights"):
        train_restorer(config, out)


@pytest.mark.parametrize("killed_at", [("encoders", 2), ("local", 3), ("dense", 6), ("light", 7)])
def test_a_killed_run_resumes_to_the_same_weights(config, tmp_path, killed_at):
    train_restorer(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train_restorer(config, tmp_path / "killed", progress=stop_at(*killed_at))
    assert not (tmp_path / "killed" / RESTORER).exists()
    train_restorer(replace(config, workers=0), tmp_path / "killed")
    whole, killed = (load_file(tmp_path / name / RESTORER) for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    assert (tmp_path / "whole" / CALIBRATION).read_text() == (tmp_path / "killed" / CALIBRATION).read_text()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def test_other_settings_do_not_go_on_from_a_state(config, tmp_path):
    with pytest.raises(Killed):
        train_restorer(config, tmp_path, progress=stop_at("dense", 5))
    with pytest.raises(ValueError, match="resumed only with the settings"):
        train_restorer(replace(config, seed=5), tmp_path)


def test_thresholds_are_those_of_whole_images_of_every_folder(config, folder, tmp_path, monkeypatch):
    seen = []

    def spy(restorer, batches, *, false_alarm_rate, data):
        seen.append((data, [tuple(batch.shape[-2:]) for batch in batches], false_alarm_rate))
        return CALIBRATION_OF_FAKES

    monkeypatch.setattr(training, "calibrate", spy)
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    folders = split(replace(config, data=(str(folder), str(other))))[1]
    training.measure(Specialists(), folders, config, "cpu")
    assert [data.split("/")[-1] for data, _, _ in seen] == [folder.name, "other"]
    assert seen[0][1] == [(20 + i % 3, 24 + i % 5) for i in range(1, 80, 2)]


# Everything


def test_all_networks_in_one_folder(folder, tmp_path):
    steps, restorer = [], {**SETTINGS}
    out = train_all(
        [folder],
        tmp_path / "out",
        denoiser=TINY_DENOISER,
        restorer=restorer,
        progress=lambda *args: steps.append(args[:3]),
    )
    assert steps == [
        (n, i + 1, 10)
        for i, n in enumerate(["denoiser"] * 2 + ["encoders"] * 2 + ["local"] * 2 + ["dense"] * 2 + ["light"] * 2)
    ]
    assert load_denoiser(out).max_level == 160
    assert load_restorer(out / "restorer")[1].images == 40
    assert SampDetox(out, seed=0, preset="ddim")(pixels(3, 20, 20)).shape == (3, 20, 20)
    done = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    train_all([folder], out, denoiser=TINY_DENOISER, restorer=restorer, progress=stop_at("denoiser", 1))
    assert done == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"with the search networks of another seed"):
        train_all([folder], out, denoiser=TINY_DENOISER, restorer={**restorer, "seed": 1})
    with pytest.raises(ValueError, match=r"with the denoiser of another max_level"):
        train_all([folder], out, denoiser={**TINY_DENOISER, "max_level": 5}, restorer=restorer)


def test_networks_of_photographs_are_not_trained_twice_and_not_taken_for_those_of_other_settings(folder, tmp_path):
    large = {"sizes": ((16, 5, 1.0),), "steps": 1, "workers": 0, "bf16": False, "drawn": 0, "held_out": 0.5}
    settings = {"denoiser": TINY_DENOISER, "restorer": SETTINGS, "photographs": large}
    out = train_all([folder], tmp_path / "out", **settings)
    train_all([folder], out, progress=stop_at("search", 7), **settings)
    with pytest.raises(ValueError, match=r"with the networks of photographs of another seed"):
        train_all([folder], out, **{**settings, "photographs": {**large, "seed": 1}})


@pytest.mark.parametrize("killed_at", [("denoiser", 2), ("local", 5), ("light", 10)])
def test_all_resumes_wherever_it_was_killed(folder, tmp_path, killed_at):
    settings = {"denoiser": TINY_DENOISER, "restorer": SETTINGS}
    with pytest.raises(Killed):
        train_all([folder], tmp_path / "killed", progress=stop_at(*killed_at), **settings)
    steps = []
    train_all([folder], tmp_path / "killed", progress=lambda name, step, *_: steps.append(step), **settings)
    assert steps == list(range(steps[0], 11)) if steps else killed_at == ("light", 10)
    assert min(steps, default=10) >= killed_at[1]
    train_all([folder], tmp_path / "whole", **settings)
    whole, killed = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")}
        for name in ("whole", "killed")
    )
    assert len(whole) == 2 and whole == killed


def test_too_few_images_are_said_before_the_denoiser_is_trained(folder, tmp_path):
    with pytest.raises(ValueError, match="to hold out 40"):
        train_all([folder], tmp_path / "out", denoiser=TINY_DENOISER, restorer={**SETTINGS, "held_out": 0.05})
    assert not (tmp_path / "out").exists()


def test_the_defaults_are_settings():
    config = RestorerTrainingConfig(data=("pictures",))
    assert asdict(config)["steps"] == 10_000 and json.loads(config.fixed())["data"] == ["pictures"]
    assert not {"steps", "workers", "cooldown", "save_every"} & set(json.loads(config.fixed()))
