"""Flow matching with few steps: times, noising, the two samplers and the partial rollout. Pure functions on
tensors.

Convention: sigma in [0, 1], x_sigma = (1 - sigma) x0 + sigma eps, velocity v = eps - x0. Latents x have shape
(B, ...), sigma has shape (B,). Arithmetic is never done below float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from .randomness import noise_like, uniform

Time = TypeVar("Time", float, Tensor)

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(x (B, ...), sigma (B,)) -> v (B, ...)``."""


def shift(t: Time, s: float = 3.0) -> Time:
    """Shift a time towards noise, t' = s t / (1 + (s - 1) t). 0 and 1 stay; s = 1 is the identity."""
    return s * t / (1 + (s - 1) * t)


def unshift(t: Time, s: float = 3.0) -> Time:
    """Inverse of :func:`shift`."""
    return t / (s - (s - 1) * t)


def few_step_sigmas(steps: int, s: float = 3.0) -> tuple[float, ...]:
    """The ``steps + 1`` sigmas from 1 to 0 of a uniform schedule under :func:`shift`.

    8 steps: 1, .9545, .9, .8333, .75, .6429, .5, .3, 0. The released code truncates the matching timesteps to
    integers (954); these are exact.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return tuple(shift(1 - k / steps, s) for k in range(steps + 1))


def fewer_sigmas(sigmas: Sequence[float], steps: int) -> tuple[float, ...]:
    """``steps + 1`` of a trained schedule, evenly chosen: a student knows these times and no others.

    More steps than the schedule has give the schedule itself.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    whole = len(sigmas) - 1
    steps = min(steps, whole)
    return tuple(sigmas[round(k * whole / steps)] for k in range(steps + 1))


def nearest_sigmas(sigmas: Sequence[float], wanted: Sequence[float]) -> tuple[float, ...]:
    """The nonzero ones of a schedule that are nearest to each of `wanted`, falling and each once."""
    nonzero = [sigma for sigma in sigmas if sigma > 0]
    return tuple(sorted({min(nonzero, key=lambda sigma: abs(sigma - one)) for one in wanted}, reverse=True))


def seeded_sigmas(sigmas: Sequence[float], count: int = 5) -> tuple[float, ...]:
    """The last ``count`` nonzero sigmas: where the teacher-seeded term noises y to (paper: 5 of 8)."""
    nonzero = [sigma for sigma in sigmas if sigma > 0]
    if not 1 <= count <= len(nonzero):
        raise ValueError(
            f"count must be within 1 and {len(nonzero)}, the schedule's nonzero sigmas, not {count}"
        )
    return tuple(nonzero[-count:])


def uniform_shifted(
    generators: Sequence[torch.Generator], low: float = 0.0, high: float = 1.0, s: float = 3.0
) -> Tensor:
    """(B,) times: uniform in [low, high), then shifted. Backward simulation and the fake score use [0, 1),
    the teacher-seeded term [0.5, 1) *before* the shift, hence [0.75, 1)."""
    return shift(uniform(generators, low, high), s)


def anchored_times(
    generators: Sequence[torch.Generator], t_bs: Tensor, s: float = 3.0, double_shift: bool = True
) -> Tensor:
    """(B,) times of the trajectory-anchored term, each at or above the sample's own ``t_bs``.

    ``t_bs`` (B,) is the shifted time at which the backward-simulation term scored the sample. The released
    code draws u ~ U(t_bs, 1) and shifts it once more (``double_shift``); otherwise the law is the shifted
    uniform one, cut off below t_bs.
    """
    return shift(uniform(generators, t_bs if double_shift else unshift(t_bs, s)), s)


def add_noise(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) x0 + sigma eps."""
    sigma = _per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x0, what the network regresses on."""
    return eps - x0


def x0_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent that velocity v at x_sigma points to, x0 = x_sigma - sigma v."""
    return x - _per_sample(sigma, x) * v


def velocity_towards(x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that leads from x_sigma to the clean latent x0, (x_sigma - x0) / sigma; sigma > 0."""
    return (x - x0) / _per_sample(sigma, x)


def euler(velocity: Velocity, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Deterministic Euler sampling from x at ``sigmas[0]``, one evaluation a step: the state after each."""
    for now, then in pairwise(sigmas):
        x = x + (then - now) * velocity(x, _full(x, now))
        yield x


def consistency(
    velocity: Velocity, x: Tensor, sigmas: Sequence[float], generators: Sequence[torch.Generator]
) -> Iterator[Tensor]:
    """Few-step sampling as trained: predict x0, noise it *afresh* to the next sigma (ComfyUI's ``lcm``). The
    state after each step.

    x is at ``sigmas[0]``. Sample i draws from ``generators[i]`` only, one noise for each step but the last if
    that ends at sigma 0.
    """
    for now, then in pairwise(sigmas):
        sigma = _full(x, now)
        x = _renoise(x0_from_velocity(x, velocity(x, sigma), sigma), then, generators)
        yield x


def last(states: Iterable[Tensor]) -> Tensor:
    """Run a sampler to its end and return the final x."""
    x = None
    for state in states:
        x = state
    if x is None:
        raise ValueError("the schedule has no step: it needs at least two sigmas")
    return x


@torch.no_grad()
def rollout(
    velocity: Callable[[Tensor, Tensor, Sequence[int]], Tensor],
    noise: Tensor,
    sigmas: Sequence[float],
    stops: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The student's own noisy input at a step of its schedule (L_DMD_BS).

    Runs :func:`consistency` from ``noise`` without gradient and stops sample i after ``stops[i]`` steps, so
    that it is returned at ``sigmas[stops[i]]``. A sample that has stopped is dropped from the batch: the cost
    is ``sum(stops)`` evaluations, not ``B * max(stops)``. Sample i equals what it would be alone.

    Args:
        velocity: ``(x (n, ...), sigma (n,), active)``; which samples of the batch these n are, so that the
            callee can pick their prompts and source latents.
        stops: (B,) long in [0, len(sigmas) - 1]; 0 returns the noise itself.

    Raises:
        ValueError: stops of another length than the batch, or out of range.
    """
    if stops.shape != noise.shape[:1]:
        raise ValueError(f"stops has shape {tuple(stops.shape)}, the batch holds {noise.shape[0]} samples")
    depths = stops.tolist()
    if not all(0 <= stop < len(sigmas) for stop in depths):
        raise ValueError(f"stops must lie within 0 and {len(sigmas) - 1}, not {depths}")
    x = noise.clone()
    for k in range(max(depths, default=0)):
        active = [i for i, stop in enumerate(depths) if stop > k]
        here = torch.stack([x[i] for i in active])  # an index would be copied to the device, and waited for
        sigma = _full(here, sigmas[k])
        x0 = x0_from_velocity(here, velocity(here, sigma, active), sigma)
        moved = _renoise(x0, sigmas[k + 1], [generators[i] for i in active]).to(x.dtype)
        for i, one in zip(active, moved):
            x[i] = one
    return x


def _renoise(x0: Tensor, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
    if sigma == 0:
        return x0
    return add_noise(x0, noise_like(x0, generators), _full(x0, sigma))


def _full(x: Tensor, sigma: float) -> Tensor:
    return torch.full(x.shape[:1], sigma, dtype=_at_least_float32(x), device=x.device)


def _per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(device=x.device, dtype=_at_least_float32(x)).reshape(-1, *[1] * (x.dim() - 1))


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
