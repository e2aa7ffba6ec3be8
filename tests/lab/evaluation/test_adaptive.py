"""Experiment adaptive-patch: its gradient is exact, and it lowers what the search sees."""

import pytest
import torch

from sampdetox_transforms.lab.evaluation import adaptive
from sampdetox_transforms.networks.restorer_files import load_restorer


@pytest.fixture
def smooth():
    coarse = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return (images * 255).round().to(torch.uint8)


def test_the_gradient_is_that_of_the_decision(smooth):
    restorer, calibration = load_restorer()
    x, generator = smooth.double() / 255, torch.Generator().manual_seed(1)
    patch = torch.rand(3, 5, 5, generator=generator, dtype=torch.float64).requires_grad_()
    direction = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)

    def loss(p):
        return adaptive.suspected(x, p, restorer.double(), calibration).sum()

    (gradient,) = torch.autograd.grad(loss(patch), patch)
    with torch.no_grad():
        difference = (loss(patch + 1e-7 * direction) - loss(patch - 1e-7 * direction)) / 2e-7
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-4)


def test_the_patch_is_less_suspected_and_stays_visible(smooth):
    restorer, calibration = load_restorer()
    x, least = smooth.float() / 255, 0.2
    start, end = (
        adaptive.optimise(smooth, restorer, calibration, steps, 8, least, torch.Generator().manual_seed(2))
        for steps in (0, 12)
    )
    assert end.shape == (3, 5, 5) and float(end.min()) >= 0 and float(end.max()) <= 1
    assert torch.equal(end, (end * 255).round() / 255)
    before, after = (float(adaptive.suspected(x, p, restorer, calibration).mean()) for p in (start, end))
    assert after < 0.8 * before
    assert float(adaptive.contrast(x, end).mean()) > least
