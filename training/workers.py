"""One run in several processes, as torchrun starts them: each takes a share of every batch.

Base and teachers are held by every process (but see :mod:`.sharding`), only the gradients of the adapters
travel. All processes then take the same step, so that student, fake score and optimizers are the same
everywhere, and a checkpoint of one is a checkpoint of all. Random numbers are named by the sample and not by
the process: the number of processes changes a result by rounding alone.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

from .sharding import PATIENCE, Pace, Wish

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Workers:
    """The processes of a run. The default is this process alone, for which everything here does nothing."""

    rank: int = 0
    count: int = 1
    pace: Pace | None = None
    """Where they hold parts of one base."""

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Workers]:
        """Among the processes that torchrun has started, until the end of the block; alone without it."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls()
            return
        importlib.import_module("torch.distributed.nn")  # later, its functions' defaults would hold the group
        if torch.cuda.is_available():  # what travels as an object goes over the current device
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
        yield cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        # A thread of gloo that drops a tensor while the interpreter ends aborts a process that has finished.
        # It drops the last ones during this wait, and ends with the group (which a cache of FSDP may hold).
        # Not after an error: that would be to wait for the others, and torchrun ends them once one has ended.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        gc.collect()

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    def share(self, things: Sequence[Thing]) -> list[Thing]:
        """This process' part of `things`, the same everywhere."""
        return list(things[self.rank :: self.count])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype, in place, by their sums over the processes; one message."""
        if self.count == 1:
            return
        self._meet()
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def gather(self, thing: Thing) -> list[Thing]:
        """Every process' thing, in the order of ranks."""
        if self.count == 1:
            return [thing]
        self._meet()
        things: list[Thing] = [thing] * self.count
        torch.distributed.all_gather_object(things, thing)
        return things

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self._meet()
            torch.distributed.barrier()

    def before_backward(self) -> None:
        """To be called outside of all roles before each backward through the model."""
        if self.pace:
            self.pace.agree(Wish.BACKWARD)

    def _meet(self) -> None:
        if self.pace:
            self.pace.agree(Wish.MEET)

    @contextmanager
    def one_goes_first(self) -> Iterator[None]:
        """The leading process runs the block, then the others do: what it leaves on the disk they find."""
        if not self.leads:
            self.wait()
        try:
            yield
        finally:
            if self.leads:
                self.wait()


ALONE = Workers()
"""This process and no other."""
