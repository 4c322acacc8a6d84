"""A frozen base larger than the device: weights wait in host memory and are there while their block runs.

The weights of the blocks' Linears, 99.8% of Qwen-Image-Edit, lie in (for CUDA page-locked) host memory. Two
buffers on the device hold the block that runs and the one that will run next, which is copied on a stream of
its own meanwhile, from first to last in a forward and from last to first in a backward. Gradients are right
with and without activation checkpointing, because a Linear asks for its weight again in the backward (see
:mod:`.frozen`) instead of saving it.
"""

from __future__ import annotations

import math
import warnings
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .frozen import FrozenForward, blocks_of, frozen_linears

ALIGNMENT = 256
"""Bytes; what CUDA's own allocations keep to."""
PORTABLE = 1
"""cudaHostRegisterPortable: memory that is locked for every device."""
NONE = -1
"""No block has run yet."""


class Offload:
    """The blocks of a frozen module in host memory, as long as this is attached.

    ::

        with Offload(transformer, "cuda") as offload:   # before the module itself goes to the device
            transformer.to("cuda")                      # moves what is not offloaded
            ...                                         # forwards and backwards, one at a time

    While attached, the weight of an offloaded Linear is an empty tensor: `module.to(device)` does not bring
    it back, and a state_dict lacks it. Modules, names, parameters and hooks stay what they are; `detach`
    returns every weight, bit for bit, to the device where it was found.

    Args:
        device: where the module computes.
        blocks: how many to offload, spread evenly over the model so that the resident ones in between hide
            the copies; True: all.

    Raises:
        ValueError: a module without blocks, or fewer of them than asked for.
    """

    def __init__(self, module: nn.Module, device: torch.device | str, blocks: bool | int = True) -> None:
        found = blocks_of(module)
        count = len(found) if blocks is True else int(blocks)
        if not found:
            raise ValueError(f"{type(module).__name__} has no list of blocks to offload")
        if not 1 <= count <= len(found):
            raise ValueError(
                f"offload = {count}: the model has {len(found)} blocks, so true or 1 to that many"
            )
        self.device = torch.device(device)
        self.late = 0
        """How often a block was waited for because it had not been foreseen."""
        self._chosen = [found[i * len(found) // count] for i in range(count)]
        self._blocks: list[_Block] = []
        self._slots: list[_Slot] = []
        self._current, self._upwards = NONE, True
        self._stream: torch.cuda.Stream | None = None

    @property
    def present(self) -> tuple[int, ...]:
        """Numbers (among the offloaded) of the blocks that are on the device, or on their way: at most 2."""
        return tuple(slot.block for slot in self._slots if slot.block is not None)

    def attach(self) -> Offload:
        """Move the weights to host memory. Does nothing if attached already.

        Raises:
            ValueError: a weight that is trained.
        """
        if self._blocks:
            return self
        cuda = self.device.type == "cuda"
        self._blocks = [_Block.of(block) for block in self._chosen]
        try:
            for number, block in enumerate(self._blocks):
                block.leave(pin=cuda)
                for part in block.parts:
                    held = partial(self._weight, number, part)
                    part.linear.forward = FrozenForward(part.linear, held)  # type: ignore[method-assign]
            size = max(block.size for block in self._blocks)
            for _ in self._blocks[:2]:
                self._slots.append(_Slot(torch.empty(size, dtype=torch.uint8, device=self.device)))
        except BaseException:
            self.detach()
            raise
        self._stream = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]
        self._current, self._upwards = NONE, True
        self._bring(0)
        return self

    def detach(self) -> None:
        """Bring every weight back to the device where it was found. Does nothing if not attached."""
        if self._stream is not None:
            torch.cuda.synchronize(self.device)
        self._slots, self._stream = [], None
        while self._blocks:
            self._blocks.pop().come_back()

    def __enter__(self) -> Offload:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _weight(self, number: int, part: _Part) -> Tensor:
        """The weight on the device, for use by the kernels that are launched next and no longer."""
        slot = self._slot(number)
        if slot is None or number != self._current:
            slot = self._enter(number)
        return part.of(slot.buffer)

    def _enter(self, number: int) -> _Slot:
        """Block `number` runs from here on; the one after it starts on its way."""
        last = len(self._blocks) - 1
        # From the last to the first is where a forward follows another.
        self._upwards = number > self._current or (number == 0 and self._current == last)
        if self._slot(number) is None:
            self.late += 1
        slot = self._bring(number)
        if slot.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        self._current = number
        if not self._upwards or (number == last and torch.is_grad_enabled()):
            self._bring(max(number - 1, 0))  # a forward with gradient turns round at its end
        else:
            self._bring((number + 1) % (last + 1))
        return slot

    def _bring(self, number: int) -> _Slot:
        """Start copying a block, unless it is there, over one that is not running."""
        slot = self._slot(number)
        if slot is None:
            slot = next(one for one in self._slots if one.block is None or one.block != self._current)
            slot.block = number
            # Selective checkpointing expects of a recomputation the operations of its forward: a copy is none
            # of the model's, and need not happen in both.
            with torch._C._DisableTorchDispatch():
                slot.fill(self._blocks[number].host, self._stream)
        return slot

    def _slot(self, number: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == number), None)


@dataclass
class _Slot:
    """A buffer on the device for the bytes of one block."""

    buffer: Tensor
    block: int | None = None
    arrived: torch.cuda.Event | None = None

    def fill(self, host: Tensor, stream: torch.cuda.Stream | None) -> None:
        target = self.buffer[: len(host)]
        if stream is None:
            target.copy_(host)
            return
        # Whatever reads the buffer's old content has been launched by now, and is waited for.
        stream.wait_stream(torch.cuda.current_stream(self.buffer.device))
        with torch.cuda.stream(stream):
            target.copy_(host, non_blocking=True)
            self.arrived = stream.record_event()


@dataclass
class _Part:
    """A Linear's weight among the bytes of its block, and how the Linear was found."""

    linear: nn.Linear
    offset: int
    shape: torch.Size
    dtype: torch.dtype
    home: torch.device
    forward: Any
    """The instance's own, if it has one (quantised: see :mod:`.fp8`)."""

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, content: Tensor) -> Tensor:
        """The weight as a view of its block's bytes."""
        return content[self.offset : self.offset + self.size].view(self.dtype).view(self.shape)


@dataclass
class _Block:
    parts: list[_Part]
    size: int
    host: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    @classmethod
    def of(cls, block: nn.Module) -> _Block:
        parts: list[_Part] = []
        size = 0
        for linear in frozen_linears(block):
            weight, forward = linear.weight, linear.__dict__.get("forward")
            parts.append(_Part(linear, size, weight.shape, weight.dtype, weight.device, forward))
            size += math.ceil(parts[-1].size / ALIGNMENT) * ALIGNMENT
        return cls(parts, size)

    @torch.no_grad()
    def leave(self, pin: bool) -> None:
        """Weights to host memory, each dropped as soon as it is copied."""
        self.host = torch.empty(self.size, dtype=torch.uint8)
        if pin:
            _pin(self.host)
        for part in self.parts:
            part.of(self.host).copy_(part.linear.weight)
            part.linear.weight.data = torch.empty(0, dtype=part.dtype, device=part.home)

    @torch.no_grad()
    def come_back(self) -> None:
        """Undo `leave`, as far as it got."""
        for part in self.parts:
            if part.linear.weight.numel() == 0:
                part.linear.weight.data = part.of(self.host).to(part.home, copy=True)
            part.linear.__dict__.pop("forward", None)
            if part.forward is not None:
                part.linear.forward = part.forward  # type: ignore[method-assign]
        self.host = self.host.new_empty(0)


def _pin(host: Tensor) -> None:
    """Lock memory where it is, until the tensor goes, so that copies need not wait; warns if that is refused.

    `Tensor.pin_memory` rounds up to powers of two: 60 GiB for the blocks of a 40 GiB base.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if runtime.cudaHostRegister(host.data_ptr(), host.numel(), PORTABLE) == 0:
        weakref.finalize(host, runtime.cudaHostUnregister, host.data_ptr()).atexit = False
        return
    with suppress(RuntimeError):  # or the next kernel would report this error as its own
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    warnings.warn("host memory cannot be locked: offloaded blocks arrive more slowly", stacklevel=2)
