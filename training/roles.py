"""Student, fake score, teachers and base on *one* frozen model: a role is a choice of adapter, never a copy.

Forward hooks on the adapted Linears add the active role's delta. The model's modules, names, weights and
flags are not touched, and :meth:`Roles.detach` leaves nothing behind. PEFT is not used for this: it renames
weights and refuses per-sample adapters in training mode.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .lora import LoraAdapter, TeacherStack, linear_shape
from .low_rank import Factors, LowRank, add_low_rank, cast

BASE = "base"
PLUS = " + "


class RoleError(RuntimeError):
    """A role is unknown or does not fit the model, or a backward ran under another role than its forward."""


class Roles:
    """Named adapters on one frozen module, one of them active at a time ("base": none), or several added up
    ("student + below").

    ::

        with Roles(transformer, {"student": student, "fake": fake}) as roles:
            with roles.use("student"):
                v = roles.guard(transformer(x))
                loss(v).backward()              # inside: checkpointed blocks run again here

    The active role is a plain attribute and not a context variable, because autograd recomputes checkpointed
    blocks in threads of its own. The caller freezes the module's parameters.

    Raises:
        RoleError: an adapter's module path is missing from the module, is no Linear, or has another shape.
    """

    def __init__(self, module: nn.Module, adapters: Mapping[str, LoraAdapter]) -> None:
        if BASE in adapters:
            raise RoleError(f"{BASE!r} names the module without adapter and cannot name one")
        if any(PLUS in name for name in adapters):
            raise RoleError(f"{PLUS!r} adds up adapters and cannot be in the name of one")
        self.module = module
        self.adapters = dict(adapters)
        self._active: _Role = _Role(BASE)
        self._handles: dict[str, RemovableHandle] | None = None
        for name, adapter in self.adapters.items():
            for path, shape in adapter.shapes.items():
                self._linear(path, shape, f"adapter {name!r}")

    @property
    def active(self) -> str:
        """Name of the active role."""
        return self._active.name

    def attach(self) -> Roles:
        """Hook the module. Does nothing if attached already."""
        if self._handles is None:
            self._handles = {}
            for adapter in self.adapters.values():
                for path, shape in adapter.shapes.items():
                    self._hook(path, shape)
        return self

    def detach(self) -> None:
        """Remove every hook; the module is then as it was found. Does nothing if not attached."""
        for handle in (self._handles or {}).values():
            handle.remove()
        self._handles = None

    def __enter__(self) -> Roles:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Make "base", an adapter or a sum of adapters the active role, and restore the one found on leaving.

        Raises:
            RoleError: unknown role, or not attached.
        """
        with self._activate(self._role(role)):
            yield

    @contextmanager
    def use_teachers(self, stack: TeacherStack, index: Tensor, plus: str | None = None) -> Iterator[None]:
        """Give each sample its own teacher: ``index`` (B,) long into the stack, -1 for the base alone.

        With `plus`, the name of an adapter, its delta is added to each sample's.

        Inside, dimension 0 of every adapted Linear's input must be B (for cond and uncond in one batch,
        repeat the index); vectors may come twice, (2B, in), first those of all samples and then again. Mixed
        batches cost a batched matmul on the low rank; a batch of one teacher costs a plain one.

        Raises:
            RoleError: index out of range, a module of the stack that does not fit, an unknown adapter, or
                not attached.
        """
        chosen: _Role = _TeacherRole(stack, index)
        if plus is not None:
            chosen = _SumRole(chosen, self._role(plus))
        if self._handles is not None:
            for path, up in stack.up.items():
                self._hook(path, (up.shape[1], stack.down[path].shape[2]))
        with self._activate(chosen):
            yield

    def guard(self, output: Tensor) -> Tensor:
        """``output`` unchanged; a backward through it raises RoleError unless the present role is active.

        With activation checkpointing, backward runs blocks anew under whichever role is active *then*: under
        another role the gradients would be silently wrong.
        """
        return _Guard.apply(output, self, self._active)  # type: ignore[no-untyped-call, no-any-return]

    @contextmanager
    def _activate(self, role: _Role) -> Iterator[None]:
        if self._handles is None:
            raise RoleError(f"role {role.name!r} has no effect: attach() the roles to the module first")
        found, self._active = self._active, role
        try:
            yield
        finally:
            self._active = found

    def _role(self, name: str) -> _Role:
        first, plus, others = name.partition(PLUS)
        if plus:
            return _SumRole(self._role(first), self._role(others))
        if name == BASE:
            return _Role(BASE)
        if name in self.adapters:
            return _AdapterRole(name, self.adapters[name])
        raise RoleError(f"unknown role {name!r}; known are {', '.join([BASE, *self.adapters])}")

    def _hook(self, path: str, shape: tuple[int, int]) -> None:
        assert self._handles is not None
        linear = self._linear(path, shape, "a teacher")
        if path not in self._handles:
            self._handles[path] = linear.register_forward_hook(_Delta(self, path))

    def _linear(self, path: str, shape: tuple[int, int], owner: str) -> nn.Module:
        try:
            linear = self.module.get_submodule(path)
        except AttributeError:
            raise RoleError(f"{owner} adapts {path}, which {type(self.module).__name__} lacks") from None
        found = linear_shape(linear)
        if found != tuple(shape):
            what = "is no Linear" if found is None else f"has shape (out, in) = {found}"
            raise RoleError(
                f"{owner} adapts {path} with shape (out, in) = {tuple(shape)}, but the module's {what}"
            )
        return linear


def products(linear: nn.Module, x: Tensor) -> tuple[LowRank, ...] | None:
    """What the active roles add to what a Linear makes of x, in this order; None if others hook it too."""
    hooks = linear._forward_hooks.values()
    if not all(isinstance(hook, _Delta) for hook in hooks) or linear._forward_pre_hooks:
        return None
    return tuple(product for hook in hooks for product in hook.products(x))  # type: ignore[attr-defined]


class _Delta:
    """The hook on a Linear."""

    def __init__(self, roles: Roles, path: str) -> None:
        self.roles, self.path = roles, path

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for product in self.products(args[0]):
            output = add_low_rank(output, args[0], *product)
        return output

    def products(self, x: Tensor) -> tuple[LowRank, ...]:
        return self.roles._active.products(self.path, x)


class _Role:
    """The base: adds nothing anywhere. Two uses of one name are the same role."""

    def __init__(self, name: str, key: Hashable = None) -> None:
        self.name, self.key = name, key or name
        """The key is equal for what is the same role, and holds none of its tensors."""

    def products(self, path: str, x: Tensor) -> tuple[LowRank, ...]:
        """What this role adds to what the Linear at `path` makes of x."""
        return ()


class _AdapterRole(_Role):
    def __init__(self, name: str, adapter: LoraAdapter) -> None:
        super().__init__(name)
        self._scale, self._masters = adapter.scale, adapter.factors
        self._cast = _Cast(self._masters)

    def products(self, path: str, x: Tensor) -> tuple[LowRank, ...]:
        if path not in self._masters:
            return ()
        return (LowRank(self._cast(path, x.dtype), self._scale, self._masters[path]),)


class _TeacherRole(_Role):
    def __init__(self, stack: TeacherStack, index: Tensor) -> None:
        numbers = index.tolist()  # once: on a device this waits for it
        if any(not -1 <= n < len(stack.names) for n in numbers):
            raise RoleError(f"teacher index {numbers} is out of range: the stack holds {len(stack.names)}")
        name = "teachers " + ", ".join(BASE if n < 0 else stack.names[n] for n in numbers)
        super().__init__(name, (stack.key, *numbers))
        self._stack = stack
        self._index = index
        self._shared = numbers[0] if len(set(numbers)) == 1 else None
        only = {} if self._shared is None or self._shared < 0 else stack.factors(self._shared)
        self._cast = _Cast(only)

    def products(self, path: str, x: Tensor) -> tuple[LowRank, ...]:
        samples = len(self._index)
        # editions that modulate the source's tokens by themselves take a vector of time for them too
        if x.shape[0] != samples and x.shape[:-1] != (2 * samples,):
            raise RoleError(
                f"{path} got an input of shape {tuple(x.shape)}, but teachers are chosen for {samples} "
                "samples: dimension 0 must be the batch (for cond and uncond in one batch, repeat the index)"
            )
        if path not in self._stack.down or self._shared == -1:
            return ()
        if self._shared is not None:
            return (LowRank(self._cast(path, x.dtype)),)
        self._index = self._index.to(x.device)  # moves on the first Linear only
        chosen, present = self._index.clamp(min=0), (self._index >= 0).reshape(-1, 1, 1)
        down, up = self._stack.down[path][chosen], self._stack.up[path][chosen]
        return (LowRank(((down * present).to(x.dtype), up.to(x.dtype))),)


class _Cast:
    """Factors in the dtype of the arithmetic: all at once when that is known, and again after a change."""

    def __init__(self, factors: dict[str, Factors]) -> None:
        self._factors = factors
        self._dtype: torch.dtype | None = None
        self._made: dict[str, Factors] = {}
        self._versions: dict[str, list[int]] = {}

    def __call__(self, path: str, dtype: torch.dtype) -> Factors:
        pair = self._factors[path]
        if pair[0].dtype == pair[1].dtype == dtype:
            return pair
        if dtype != self._dtype or self._versions[path] != _versions(pair):
            self._dtype, self._made = dtype, cast(self._factors, dtype)
            self._versions = {path: _versions(pair) for path, pair in self._factors.items()}
        return self._made[path]


def _versions(factors: Factors) -> list[int]:
    return [0 if factor.is_inference() else factor._version for factor in factors]


class _SumRole(_Role):
    """Two roles at once."""

    def __init__(self, *parts: _Role) -> None:
        super().__init__(PLUS.join(part.name for part in parts), tuple(part.key for part in parts))
        self._parts = parts

    def products(self, path: str, x: Tensor) -> tuple[LowRank, ...]:
        return tuple(product for part in self._parts for product in part.products(path, x))


class _Guard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, roles: Roles, role: _Role) -> Tensor:
        # not the role: its cast factors, or its teachers, would stay as long as this graph
        ctx.roles, ctx.key, ctx.name = roles, role.key, role.name
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        active = ctx.roles._active
        if ctx.key != active.key:
            raise RoleError(
                f"backward under role {active.name!r} of an output computed under {ctx.name!r}: "
                "call backward() inside the same role"
            )
        return grad, None, None
