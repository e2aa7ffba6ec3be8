"""Noise schedules. One convention throughout: level 0 is clean, level k uses ``alphas_cumprod[k - 1]``.

A level may be fractional: log(alphas_cumprod) is linear between two whole levels, as if beta were constant
inside a step. The network's timestep for level k is t = k - 1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor

SCHEDULES = ("linear", "scaled_linear", "cosine")

ALIASES = {"squaredcos_cap_v2": "cosine"}  # diffusers' name


class Schedule:
    """A noise schedule, computed in float64.

    Args:
        betas: (T,) variances of the forward steps, each in (0, 1): beta_t of the paper's section 4.3.
        name: how the schedule was made, for display only.

    Raises:
        ValueError: betas that are not a non-empty list of numbers in (0, 1).
    """

    def __init__(self, betas: Sequence[float] | Tensor, *, name: str = "betas"):
        self.betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach().clone()
        inside = (self.betas > 0) & (self.betas < 1)
        if self.betas.ndim != 1 or not len(self.betas) or not inside.all():
            raise ValueError(
                f"betas must be a non-empty list of numbers in (0, 1), got shape {tuple(self.betas.shape)} with values "
                f"{self.betas.flatten()[:5].tolist()}... Use Schedule.named('linear') for the usual one."
            )
        self.name = name
        # alpha_t and its cumulative product, section 4.3 below equation 1.
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        log = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas).cumsum(0)])
        self._log = {log.device: log}  # log(alphas_cumprod) of levels 0...T, a copy for each device

    @classmethod
    def named(
        cls, name: str, *, num_levels: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> "Schedule":
        """linear (Ho et al. 2020), scaled_linear (linear in the square root) or cosine (Nichol and Dhariwal 2021,
        equation 17, s = .008, betas at most .999; ``beta_start`` and ``beta_end`` have no effect on it)."""
        name = ALIASES.get(name, name)
        if num_levels < 1:
            raise ValueError(f"num_levels must be 1 or more, got {num_levels}. The usual number is 1000.")
        if name == "linear":
            betas = torch.linspace(beta_start, beta_end, num_levels, dtype=torch.float64)
        elif name == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_levels, dtype=torch.float64).square()
        elif name == "cosine":
            steps = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
            f = torch.cos((steps + 0.008) / 1.008 * torch.pi / 2).square()
            betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        else:
            raise ValueError(
                f"schedule must be one of {SCHEDULES}, got {name!r}. Build any other with Schedule(betas)."
            )
        return cls(betas, name=name)

    @property
    def num_levels(self) -> int:
        """T, the highest level."""
        return len(self.betas)

    def __repr__(self) -> str:
        return f"Schedule({self.name}, num_levels={self.num_levels})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and torch.equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(tuple(self.betas.tolist()))

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._log:
            self._log[device] = self._log[torch.device("cpu")].to(device)
        return self._log[device]

    def log_signal(self, level: float | Tensor) -> Float[Tensor, "..."]:
        """log(alphas_cumprod) at any level in [0, T], float64, on the level's device; 0 at level 0."""
        level = torch.as_tensor(level, dtype=torch.float64)
        table = self._on(level.device)
        lower = level.floor().clamp(0, self.num_levels - 1)
        index = lower.long()
        return torch.lerp(table[index], table[index + 1], level - lower)

    def signal(self, level: float | Tensor) -> Float[Tensor, "..."]:
        """alphas_cumprod at any level in [0, T], float64; 1 at level 0."""
        return self.log_signal(level).exp()

    def sigma(self, level: float | Tensor) -> Float[Tensor, "..."]:
        """Noise standard deviation beside an unscaled image in [-1, 1]: sqrt((1 - ab) / ab), float64.

        In grey levels of 0...255 it is 127.5 times as much.
        """
        return torch.expm1(-self.log_signal(level)).abs().sqrt()

    def level(self, sigma: float | Tensor) -> Float[Tensor, "..."]:
        """The (fractional) level with this noise standard deviation: the inverse of ``sigma``.

        Raises:
            ValueError: a sigma below 0 or above that of the highest level.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        highest = float(self.sigma(self.num_levels))
        if not bool(((sigma >= 0) & (sigma <= highest * (1 + 1e-9))).all()):
            raise ValueError(
                f"sigma must be in [0, {highest:.6g}] for {self}, got {sigma.tolist()}. "
                "Images are in [-1, 1]: divide a sigma in grey levels by 127.5."
            )
        return self._level_of_log(-torch.log1p(sigma.square()))

    def convert(self, level: float | Tensor, to: "Schedule") -> Float[Tensor, "..."]:
        """The level of ``to`` with the same alphas_cumprod, fractional; at most its highest level."""
        return to._level_of_log(self.log_signal(level))

    def _level_of_log(self, log_signal: Tensor) -> Tensor:
        table = -self._on(log_signal.device)
        value = -log_signal
        upper = torch.searchsorted(table, value.contiguous()).clamp(1, self.num_levels)
        fraction = (value - table[upper - 1]) / (table[upper] - table[upper - 1])
        return upper - 1 + fraction.clamp(0, 1)

    def add_noise(
        self, x0: Float[Tensor, "*shape"], level: float | Num[Tensor, "*#shape"], noise: Float[Tensor, "*#shape"]
    ) -> Float[Tensor, "*shape"]:
        """Equation 2: sqrt(ab) x0 + sqrt(1 - ab) z, at one level or at one level a pixel; exact at level 0."""
        log_signal = self.log_signal(level)
        noise_share = -torch.expm1(log_signal)
        noised = noise_share > 0  # keeps the infinite slope of the root at 0 out of gradients
        root = torch.where(noised, torch.where(noised, noise_share, 1.0).sqrt(), 0.0)
        return scaled(log_signal.div(2).exp(), x0) + scaled(root, noise)


def scaled(factor: Tensor, x: Tensor) -> Tensor:
    """``factor * x`` in the dtype of ``x``, with a factor computed in float64."""
    return factor.to(x.dtype) * x
