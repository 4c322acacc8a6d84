"""The objective as pure functions. Every loss is a (B,) vector, so that a report can be split by effect; its
mean is the paper's number. Who evaluates which network at which time is the distiller's business."""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import velocity_target

NO_EDIT = 1e-3


def guided(cond: Tensor, uncond: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance as the paper counts it, cond + weight (cond - uncond).

    ``weight`` 4 (released) is a guidance scale of 5 in ComfyUI's and diffusers' notation; 0 is no guidance.
    Holds alike for velocities and for x0 at the same x_sigma.
    """
    return cond + weight * (cond - uncond)


@torch.no_grad()
def dmd_direction(x0: Tensor, x_fake: Tensor, x_real: Tensor, floor: float = 0.0) -> Tensor:
    """Direction in which x0 must *not* go: (x_fake - x_real) / mean|x0 - x_real|, the mean taken per sample.

    Equation 7 of DMD. x_fake and x_real are the clean latents that fake and real score
    predict from the same noised x0. Where x_real *is* x0, NaN becomes 0 and an infinity the dtype's largest
    number, as released; where a score is not finite, neither is the direction (released: 0).

    Args:
        floor: smallest divisor. 0 is the paper; where x_real comes very near x0 the quotient explodes.
    """
    divisor = _sample_mean((x0 - x_real).abs()).clamp(min=floor).reshape(-1, *[1] * (x0.dim() - 1))
    direction = (x_fake - x_real) / divisor
    return torch.where(divisor == 0, torch.nan_to_num(direction), direction)


def dmd_loss(x0: Tensor, direction: Tensor) -> Tensor:
    """(B,): 0.5 mean (x0 - sg[x0 - direction])^2, whose gradient in x0 is ``direction`` over the
    sample's size.

    Used by both distribution matching terms (backward simulation and teacher-seeded). float64 as released,
    where the device has it: the difference of two nearly equal numbers is taken.
    """
    wide = torch.float32 if x0.device.type in ("mps", "xpu") else torch.float64
    target = (x0.to(wide) - direction.to(wide)).detach()
    return 0.5 * _sample_mean((x0.to(wide) - target).square())


def flow_matching_loss(v: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """(B,): mean (v - (eps - x0))^2 with v the velocity predicted at x_sigma = (1 - sigma) x0 + sigma eps.

    The fake score's loss on the student's samples and the student's trajectory-anchored loss on the
    teacher's. The released configuration weighs all times alike (``denoising_loss_type: flow``).
    """
    return velocity_loss(v, velocity_target(x0, eps))


def velocity_loss(v: Tensor, target: Tensor) -> Tensor:
    """(B,): mean (v - target)^2."""
    return _sample_mean((v - target).square())


def _sample_mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def edit_shares(made: Tensor, wanted: Tensor) -> Tensor:
    """Which share of wanted edits (B,...) others make, (B,): the projection on them, from 0 to 2. 1 is all of
    it; so is that of an edit of nothing (a mean square below 0.001, where a velocity's is 1 to 2).
    """
    made, wanted = made.flatten(1).float(), wanted.flatten(1).float()
    size = wanted.square().mean(1)
    share = (made * wanted).mean(1) / size.clamp_min(NO_EDIT)
    return torch.where(size < NO_EDIT, torch.ones_like(share), share.clamp(0, 2))
