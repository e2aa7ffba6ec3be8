"""How often chance gives as much: a tail where few permutations say enough, all of them elsewhere."""

import math

import pytest
import torch
from scipy import stats

from sampdetox_transforms.method.shared.chance import CAREFUL, FEW, LEAST_IN_TAIL, beyond, p_value_of


def draws_of(sample, observed):
    """Draws from a function of a number, and how many were asked for."""
    asked = []

    def draw(number):
        asked.append(number)
        values = sample(number)
        return values, values >= observed

    return draw, asked


class TestBeyond:
    def test_exponential_values_have_their_own_tail_taken_carefully(self):
        """Of values with mean 2, an x beyond the start of the tail has p = share exp(-x / 2), here exp(-x / 4)."""
        values = -2 * torch.rand(4000, generator=torch.Generator().manual_seed(0)).log()
        start = values.quantile(0.75)
        for more in (4.0, 20.0):
            expected = math.log(0.25) - more / (2 * CAREFUL)
            assert math.log(beyond(float(start) + more, values)) == pytest.approx(expected, rel=0.05)

    def test_it_never_says_less_than_the_truth_of_usual_tails(self):
        generator = torch.Generator().manual_seed(1)
        for name, law in (("normal", stats.norm()), ("gumbel", stats.gumbel_r()), ("gamma", stats.gamma(2))):
            for _ in range(20):
                uniform = torch.rand(100, generator=generator)
                values = torch.as_tensor(law.ppf(uniform.numpy()) - law.ppf(0.001)).float()
                for rare in (1e-4, 1e-8):
                    observed = float(law.ppf(1 - rare) - law.ppf(0.001))
                    assert beyond(observed, values) > rare, name

    def test_few_values_above_zero_say_nothing(self):
        values = torch.zeros(100)
        values[: 2 * LEAST_IN_TAIL - 1] = 1 + torch.rand(2 * LEAST_IN_TAIL - 1)
        assert beyond(1000.0, values) == 1
        assert beyond(1000.0, torch.zeros(100)) == 1
        values[: 2 * LEAST_IN_TAIL] = 1 + torch.rand(2 * LEAST_IN_TAIL)
        assert beyond(1000.0, values) < 1e-9


class TestPValue:
    @pytest.mark.parametrize(("observed", "asked_for"), [(100.0, FEW), (8.0, 500), (1.0, 500)])
    def test_permutations_are_made_until_the_answer_is_known(self, observed, asked_for):
        generator = torch.Generator().manual_seed(0)
        draw, asked = draws_of(lambda number: -torch.rand(number, generator=generator).log(), observed)
        p_value = p_value_of(observed, draw, permutations=500, at_once=8)
        assert sum(asked) == asked_for and max(asked) <= 8
        if asked_for == FEW:
            assert 0 < p_value < 1 / 501
        else:
            assert p_value * 501 == pytest.approx(round(p_value * 501)) and p_value >= 1 / 501

    def test_one_that_is_as_much_is_no_less_rare_than_it_was(self):
        """However short the others' tail is."""
        generator, done = torch.Generator().manual_seed(0), []

        def draw(number):
            done.append(number)
            return -torch.rand(number, generator=generator).log(), torch.arange(number) + sum(done) - number == 3

        assert p_value_of(1000.0, draw, permutations=500, at_once=8) == pytest.approx(2 / 501)

    def test_one_that_is_as_much_and_all_are_counted(self):
        """As many values as permutations, of which three are as much as what was observed."""
        values = torch.cat([torch.full((3,), 200.0), torch.rand(97)])
        draw, _ = draws_of(lambda number: values[:number], 100.0)
        assert p_value_of(100.0, draw, permutations=100, at_once=100) == pytest.approx(4 / 101)
