"""How often chance alone gives as much: permutations, and no more of them than the answer needs.

What chance gives falls off exponentially for large values. Where an observed value lies far beyond, a tail that is
fitted to a few permutations says so (Knijnenburg et al. 2009), and the others need not be made.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# So many permutations are made before a tail is asked, which is fitted to the largest of them, and these at least
FEW, TAIL, LEAST_IN_TAIL = 64, 1 / 4, 8

CAREFUL = 2.0  # times as slowly the tail is taken to fall as its values say


def p_value_of(
    observed: float,
    draw: Callable[[int], tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]],
    *,
    permutations: int,
    at_once: int,
) -> float:
    """(1 + how often chance gives as much) / (permutations + 1), which is uniform where there is nothing but chance; or
    what ``beyond`` says, where that is less than all of them could say.

    Args:
        observed: the value.
        draw: so many values of chance, and which of them count as much as the observed one.
        at_once: how many are drawn together.
    """
    values, above, done = [], 0, 0
    while done < permutations:
        drawn, as_much = draw(min(at_once, permutations - done))
        values, above, done = [*values, drawn], above + int(as_much.sum()), done + len(drawn)
        if done >= FEW and not above:
            p_value = beyond(observed, torch.cat(values))
            if p_value * (permutations + 1) <= 1:
                return p_value
    return (1 + above) / (permutations + 1)


def beyond(observed: float, values: Float[Tensor, " n"]) -> float:
    """The share of chance's values that are as large as the observed one, by an exponential tail; 1 where too few of
    them are above 0 to say."""
    number = min(round(TAIL * len(values)), int((values > 0).sum()) // 2)
    if number < LEAST_IN_TAIL:
        return 1.0
    largest = values.sort(descending=True).values[: number + 1]
    start, scale = float(largest[-1]), CAREFUL * float((largest[:-1] - largest[-1]).mean())
    return number / len(values) * math.exp(min(0.0, (start - observed) / max(scale, 1e-9)))
