"""The latent flow in JAX; the twin of `torch_impl.model.cfm`.

Y. Lipman et al., "Flow matching for generative modeling", 2023: a net learns the velocity of straight lines from
a prior psi0 to a latent psi1. Time runs by h(t) = (a^t - 1)/(a - 1), slowly at first.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.model.wn import WN
from jax_impl.precision import total
from parivox.enhancer_tables import PSI_SIGMA, solver_times, time_frequencies, time_map_log

__all__ = ["CFM", "cfm_loss", "solver_steps", "time_embedding", "time_map"]

Method = Literal["midpoint", "euler", "rk4"]


def time_embedding(t: Float[Array, " b"]) -> Float[Array, "b e"]:
    """Sines, then cosines, of t times frequencies from 1 to 10^4."""
    angles = t[:, None] * jnp.asarray(time_frequencies(str(t.dtype)), t.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def time_map(t: Float[Array, "..."], divisor: int) -> Float[Array, "..."]:
    """h(t) with h(0) = 0, h(1) = 1 and h(1/divisor) = 1/2.

    Raises:
        ConfigError: the divisor is below 2.
    """
    log_base = time_map_log(divisor)
    return t if log_base == 0 else jnp.expm1(log_base * t) / np.expm1(log_base)


def solver_steps(method: Method, nfe: int) -> tuple[Method, int]:
    """Method and steps for so many evaluations of the velocity; one evaluation is always a step of Euler's."""
    per_step = {"euler": 1, "midpoint": 2, "rk4": 4}[method]
    return ("euler", 1) if nfe == 1 else (method, max(1, nfe // per_step))


class CFM(nnx.Module):
    """The flow from the prior to the latent."""

    def __init__(self, latent: int, mels: int, width: int, layers: int, divisor: int):
        self.divisor = divisor
        self.net = WN(latent, mels, width, layers)

    def velocity(
        self, psi: Float[Array, "b n l"], mel: Float[Array, "b n m"], t: Float[Array, " b"]
    ) -> Float[Array, "b n l"]:
        """Velocity at psi, at times after the map."""
        return self.net(psi, time_embedding(t), self.net.conditions(mel))

    def sample(
        self, psi0: Float[Array, "b n l"], mel: Float[Array, "b n m"], method: Method, nfe: int
    ) -> Float[Array, "b n l"]:
        """Follow the flow from psi0 at time 0 to time 1.

        Args:
            psi0: where it begins.
            mel: the condition.
            method: Euler's, the midpoint or the classical Runge-Kutta method.
            nfe: evaluations of the velocity.
        """
        method, steps = solver_steps(method, nfe)
        times = jnp.asarray(solver_times(steps, self.divisor), psi0.dtype)
        conditions = self.net.conditions(mel)

        def slope(psi: Array, t: Array) -> Array:
            return self.net(psi, time_embedding(jnp.broadcast_to(t, psi.shape[:1])), conditions)

        def step(k: Array, psi: Array) -> Array:
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

        return jax.lax.fori_loop(0, steps, step, psi0)


def cfm_loss(
    cfm: CFM,
    psi0: Float[Array, "b n l"],
    psi1: Float[Array, "b n l"],
    mel: Float[Array, "b n m"],
    time: Float[Array, " b"],
    noise: Float[Array, "b n l"],
) -> Float[Array, ""]:
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
    return total(jnp.abs(cfm.velocity(psi, mel, t) - (psi1 - psi0))).reshape(()) / psi.size
