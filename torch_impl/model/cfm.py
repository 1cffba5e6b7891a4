"""The latent flow in PyTorch; the twin of `jax_impl.model.cfm`.

Y. Lipman et al., "Flow matching for generative modeling", 2023: a net learns the velocity of straight lines from
a prior psi0 to a latent psi1. Time runs by h(t) = (a^t - 1)/(a - 1), slowly at first.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from parivox.enhancer_tables import PSI_SIGMA, solver_times, time_frequencies, time_map_log
from torch_impl.model.wn import WN

__all__ = ["CFM", "cfm_loss", "solver_steps", "time_embedding", "time_map"]

Method = Literal["midpoint", "euler", "rk4"]


def time_embedding(t: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
    """Sines, then cosines, of t times frequencies from 1 to 10^4."""
    angles = t[:, None] * torch.from_numpy(time_frequencies(str(t.dtype).removeprefix("torch."))).to(t)
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


def time_map(t: Float[Tensor, "..."], divisor: int) -> Float[Tensor, "..."]:
    """h(t) with h(0) = 0, h(1) = 1 and h(1/divisor) = 1/2.

    Raises:
        ConfigError: the divisor is below 2.
    """
    log_base = time_map_log(divisor)
    return t if log_base == 0 else torch.expm1(log_base * t) / float(np.expm1(log_base))


def solver_steps(method: Method, nfe: int) -> tuple[Method, int]:
    """Method and steps for so many evaluations of the velocity; one evaluation is always a step of Euler's."""
    per_step = {"euler": 1, "midpoint": 2, "rk4": 4}[method]
    return ("euler", 1) if nfe == 1 else (method, max(1, nfe // per_step))


class CFM(nn.Module):
    """The flow from the prior to the latent."""

    def __init__(self, latent: int, mels: int, width: int, layers: int, divisor: int):
        super().__init__()
        self.divisor = divisor
        self.net = WN(latent, mels, width, layers)

    def velocity(
        self, psi: Float[Tensor, "b l n"], mel: Float[Tensor, "b m n"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b l n"]:
        """Velocity at psi, at times after the map."""
        return self.net(psi, time_embedding(t), self.net.conditions(mel))

    def sample(
        self, psi0: Float[Tensor, "b l n"], mel: Float[Tensor, "b m n"], method: Method, nfe: int
    ) -> Float[Tensor, "b l n"]:
        """Follow the flow from psi0 at time 0 to time 1.

        Args:
            psi0: where it begins.
            mel: the condition.
            method: Euler's, the midpoint or the classical Runge-Kutta method.
            nfe: evaluations of the velocity.
        """
        method, steps = solver_steps(method, nfe)
        times = torch.from_numpy(solver_times(steps, self.divisor)).to(psi0)
        conditions = self.net.conditions(mel)

        def slope(psi: Tensor, t: Tensor) -> Tensor:
            return self.net(psi, time_embedding(t.expand(len(psi))), conditions)

        def step(k: int, psi: Tensor) -> Tensor:
            t, dt = times[k], times[k + 1] - times[k]
            first = slope(psi, t)
            if method == "euler":
                return psi + dt * first
            second = slope(psi + dt / 2 * first, t + dt / 2)
            if method == "midpoint":
                return psi + dt * second
            third = slope(psi + dt / 2 * second, t + dt / 2)
            fourth = slope(psi + dt * third, t + dt)
            return psi + dt / 6 * (first + 2 * second + 2 * third + fourth)

        for k in range(steps):
            psi0 = step(k, psi0)
        return psi0


def cfm_loss(
    cfm: CFM,
    psi0: Float[Tensor, "b l n"],
    psi1: Float[Tensor, "b l n"],
    mel: Float[Tensor, "b m n"],
    time: Float[Tensor, " b"],
    noise: Float[Tensor, "b l n"],
) -> Float[Tensor, ""]:
    """Mean absolute difference between the velocity and psi1 - psi0, on the line between them.

    Args:
        cfm: the flow.
        psi0: prior.
        psi1: latent.
        mel: condition.
        time: uniform draws, before the map.
        noise: normal draws; a ten-thousandth of them is added to the point on the line.
    """
    t = time_map(time, cfm.divisor)
    along = t[:, None, None]
    psi = along * psi1 + (1 - along) * psi0 + PSI_SIGMA * noise
    return (cfm.velocity(psi, mel, t) - (psi1 - psi0)).abs().mean()
