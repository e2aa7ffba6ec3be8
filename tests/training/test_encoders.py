"""Encoders of hidden bits: they learn to hide what a decoder reads, under their terms, and a killed run goes on."""

import pytest
import torch
from samples import Killed, seeded

from sampdetox_transforms.training import encoders as training
from sampdetox_transforms.training import restorer_batches
from sampdetox_transforms.training.config import RestorerTrainingConfig
from sampdetox_transforms.training.encoders import find_encoders, read_encoders
from sampdetox_transforms.training.triggers import hidden_bits as hb
from sampdetox_transforms.training.triggers.dense import DENSE, FINE, dense_triggers, fine_triggers, with_encoders
from sampdetox_transforms.training.triggers.hidden_bits import Encoder, Terms, hidden_bits

PLAIN = Terms(grey=False, place=2, price=50.0, flat=0.0, smooth=0.0)


def images(n: int, generator: torch.Generator) -> torch.Tensor:
    """Half of each image is flat, the other random."""
    x = torch.rand(n, 3, 16, 16, generator=generator)
    x[..., :8] = 0.5
    return x


def config(**changes) -> RestorerTrainingConfig:
    return RestorerTrainingConfig(
        **{"data": ("x",), "steps": 3, "batch_size": 6, "bf16": False, "encoders": 2} | changes
    )


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(PLAIN).eval().requires_grad_(False)


def test_terms_are_drawn_within_what_they_say():
    terms = [hb.drawn_terms(seeded(k)) for k in range(300)]
    assert 0.3 < sum(t.grey for t in terms) / 300 < 0.5
    assert {t.place for t in terms} == {0, 1, 2}
    assert min(t.price for t in terms) < 23 and 350 < max(t.price for t in terms) < 400
    assert 0.4 < sum(t.flat == 0 for t in terms) / 300 < 0.6 and max(t.flat for t in terms) <= 1
    assert min(t.smooth for t in terms) >= -2 and max(t.smooth for t in terms) <= 4


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (64, 64)])
@pytest.mark.parametrize("grey", [False, True])
def test_a_residual_is_bounded_and_as_its_terms_say(size, grey):
    encoder = Encoder(PLAIN._replace(grey=grey))
    x = torch.rand(2, 3, *size, generator=seeded())
    residual = encoder(x, torch.ones(2, hb.BITS))
    assert residual.shape == x.shape and float(residual.detach().abs().max()) <= hb.LIMIT
    assert bool((residual == residual[:, :1]).all()) == grey
    assert not torch.equal(residual, encoder(x, torch.zeros(2, hb.BITS)))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_message_goes_in_where_the_terms_say(encoder, place):
    encoder.terms = PLAIN._replace(place=place)
    x, bits = torch.rand(1, 3, 16, 16, generator=seeded()), torch.ones(1, hb.BITS)
    before = encoder(x, bits)
    encoder.first.weight[:, 3:] = 0  # no message at the whole resolution
    assert torch.equal(encoder(x, bits), before) == (place == 0)
    encoder.join.weight[:, hb.COARSE :] = 0  # none at half of it
    assert torch.equal(encoder(x, bits), encoder(x, 1 - bits))


def test_encoders_learn_to_hide_what_a_decoder_reads():
    losses = []
    encoder = hb.train_encoder(images, 400, seeded(3), progress=lambda step, loss: losses.append(loss))
    assert losses[0] > 0.6 and sum(losses[-10:]) / 10 < 0.5
    x = images(20, seeded(5))
    bits = torch.randint(2, (20, hb.BITS), generator=seeded()).float()
    assert 1 / 255 < float(encoder(x, bits).std()) < 30 / 255
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.training


def test_a_change_costs_something_once_the_bits_are_read(monkeypatch):
    left = []
    for readable in (2.0, 0.0):  # never, and from the first step on
        monkeypatch.setattr(hb, "READABLE", readable)
        encoder = hb.train_encoder(images, 40, seeded(3))
        left.append(float(encoder(images(20, seeded(5)), torch.ones(20, hb.BITS)).square().mean()))
    assert left[1] < 0.9 * left[0]


def test_what_a_change_costs():
    x = images(4, seeded())
    flat, detailed, fine = (torch.zeros_like(x) for _ in range(3))
    flat[..., 2:6], detailed[..., 10:14] = 0.1, 0.1
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    fine[:] = 0.05 * (-1.0) ** (rows + columns)
    even, uniform = PLAIN, torch.full_like(x, 0.05)
    assert float(hb.cost(x, flat, even)) == pytest.approx(50 * float(flat.square().mean()), rel=1e-5)
    assert float(hb.cost(x, flat, even)) == pytest.approx(float(hb.cost(x, detailed, even)), rel=1e-5)
    masked = PLAIN._replace(flat=1.0)
    assert float(hb.cost(x, flat, masked)) > 3 * float(hb.cost(x, detailed, masked))
    for smooth, dear, cheap in ((3.0, uniform, fine), (-2.0, fine, uniform)):
        terms = PLAIN._replace(smooth=smooth)
        assert float(hb.cost(x, dear, terms)) > 2 * float(hb.cost(x, cheap, terms))


def test_hidden_bits_are_of_every_encoder_and_of_several_strengths(monkeypatch):
    class Constant(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, images, bits):
            return torch.full_like(images, self.value)

    x = torch.full((400, 3, 8, 8), 0.5)
    found = (hidden_bits(x, x, seeded(), [Constant(0.01), Constant(-0.1)]) - x)[:, 0, 0, 0]
    first, second = found[found > 0] / 0.01, -found[found < 0] / 0.1
    assert len(first) + len(second) == 400 and 150 < len(first) < 250
    for strength in (first, second):
        assert 0.6 <= float(strength.min()) < 0.65 and 1.55 < float(strength.max()) <= 1.6


@pytest.mark.parametrize(("table", "share"), [(DENSE, 0.14), (FINE, 0.3)])
def test_hidden_bits_take_their_share_from_random_filters(encoder, table, share):
    assert with_encoders(table, [], share) is table
    more = with_encoders(table, [encoder], share)
    assert sum(weight for _, weight in more) == pytest.approx(sum(weight for _, weight in table))
    assert more[-1][1] == share
    changed = [a[0].__name__ for a, b in zip(table, more, strict=False) if a[1] != b[1]]
    assert sorted(changed) == ["encodings", "grey_details"]


def test_dense_and_fine_triggers_ask_the_encoders(encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(Encoder, "forward", lambda self, images, bits: asked.append(len(images)) or 0 * images)
    x = torch.rand(600, 3, 8, 8, generator=seeded())
    for triggers, low, high in ((dense_triggers, 60, 110), (fine_triggers, 140, 220)):
        asked.clear()
        assert triggers(x, seeded(), encoders=[encoder]).shape == x.shape
        assert low < sum(asked) < high


def test_batches_for_dense_triggers_and_for_the_light_denoiser_ask_the_encoders(encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(Encoder, "forward", lambda self, images, bits: asked.append(len(images)) or 0 * images)
    monkeypatch.setattr(
        restorer_batches, "draw", lambda crops, n, generator, drawn: (torch.rand(n, 3, 8, 8), torch.zeros(n, 1, 1, 1))
    )
    for make in (restorer_batches.dense_batch, restorer_batches.light_batch):
        asked.clear()
        make(None, 120, seeded(), encoders=[encoder])
        assert sum(asked) > 3


def test_a_killed_run_goes_on_to_the_same_encoders(tmp_path):
    seen = []
    whole = find_encoders(images, config(), tmp_path / "whole", progress=lambda *args: seen.append(args[0]))
    assert seen == list(range(1, 7)) and len(whole) == 2

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        find_encoders(images, config(), tmp_path / "killed", progress=stop)
    assert len(read_encoders(tmp_path / "killed", config(encoders=0).fixed())) == 1
    killed = find_encoders(images, config(), tmp_path / "killed")
    for a, b in zip(whole, killed, strict=True):
        assert a.terms == b.terms
        assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert whole[0].terms != whole[1].terms
    assert (
        find_encoders(lambda n, g: pytest.fail("drawn"), config(encoders=1), tmp_path / "whole")[0].terms
        == whole[0].terms
    )


def test_a_run_with_other_settings_does_not_go_on_with_these_encoders(tmp_path):
    find_encoders(images, config(), tmp_path / "encoders")
    with pytest.raises(ValueError, match="resumed only with the settings"):
        find_encoders(lambda n, g: pytest.fail("drawn"), config(seed=5), tmp_path / "encoders")


def test_no_encoders_cost_nothing(tmp_path):
    assert find_encoders(lambda n, g: pytest.fail("drawn"), config(encoders=0), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_steps_of_an_encoder_are_no_more_than_those_of_the_networks():
    assert training.encoder_steps(config()) == 3 and training.encoder_steps(config(steps=10_000)) == training.STEPS
