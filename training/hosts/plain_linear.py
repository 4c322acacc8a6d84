"""Linears of a frozen model and the LoRAs on them as plain tensors: what a compiled function takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..frozen import SCALE, FrozenForward, unpacked
from ..low_rank import Factors, LowRank, add_low_rank, cast_all
from ..roles import products


class PlainLinear(NamedTuple):
    """A Linear and the LoRAs on it as the tensors that they are made of."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    """Of a weight in 8 bits."""
    added: tuple[tuple[Tensor, Tensor, float], ...]
    """A, B and what their product is multiplied with."""

    def __call__(self, x: Tensor) -> Tensor:
        output = F.linear(x, self._unpacked(x.dtype), self.bias)
        for down, up, scale in self.added:
            output = add_low_rank(output, x, (down, up), scale)
        return output

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        if self.scale is None:
            return unpacked(self.weight, None, dtype)
        # the compiler would keep what a block unpacked until its backward
        made: Tensor = checkpoint(unpacked, self.weight, self.scale, dtype, use_reentrant=False)
        return made


def plain_linears(linears: Mapping[str, nn.Linear], x: Tensor) -> dict[str, PlainLinear] | None:
    """For inputs like x (B,...); None where one is offloaded or does more than its weight and roles say."""
    added = {path: products(linear, x) for path, linear in linears.items() if _plain(linear)}
    if len(added) < len(linears) or None in added.values():
        return None
    factors = iter(handed_on([product for some in added.values() for product in some or ()]))
    return {
        path: PlainLinear(
            linear.weight,
            linear.bias,
            getattr(linear, SCALE, None),
            tuple((*next(factors), product.scale) for product in added[path] or ()),
        )
        for path, linear in linears.items()
    }


def _plain(linear: nn.Linear) -> bool:
    own = linear.__dict__.get("forward")
    return linear.weight.numel() > 0 and (own is None or isinstance(own, FrozenForward))


def handed_on(added: Sequence[LowRank]) -> list[Factors]:
    """The factors; where they are trained, such that their gradients go to their masters."""

    def learns(one: LowRank) -> bool:
        return torch.is_grad_enabled() and (one.masters or one.factors)[0].requires_grad

    learning = [one for one in added if learns(one)]
    if not learning:
        return [one.factors for one in added]
    masters = [tensor for one in learning for tensor in one.masters or one.factors]
    casts = [tensor for one in learning for tensor in one.factors]
    handed = iter(_HandedOn.apply(len(masters), *masters, *casts))  # type: ignore[no-untyped-call]
    return [(next(handed), next(handed)) if learns(one) else one.factors for one in added]


class _HandedOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        masters, casts = tensors[:count], tensors[count:]
        ctx.dtype = masters[0].dtype
        return tuple(cast.detach() for cast in casts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *cast_all(grads, ctx.dtype), *[None] * len(grads)
