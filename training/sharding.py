"""A frozen base split over the processes of a run (FSDP2), and the pace that this asks of them.

The weights of a block are gathered from all processes whenever it runs, forward or backward, so all must run
the model equally often. By themselves they do not: a rollout is shorter in one process than in another, one
has no teacher image left to make, one alone makes the thumbnails. So they agree before each evaluation and
each backward on what comes next, and who has nothing of the kind to do computes something tiny meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from enum import Enum

import torch
from torch import Tensor, nn

PATIENCE = timedelta(days=1)
"""How long processes wait for each other. One alone asks for captions and chooses tags, for longer than NCCL
would let the others wait (ten minutes)."""


class Wish(Enum):
    """What a process would do next."""

    EVALUATE = "an evaluation of the model"
    BACKWARD = "a backward through the last one with gradient"
    MEET = "nothing before all have come as far"


class Pace:
    """Shards a frozen module's blocks; from then on all processes run it in step.

    Evaluations come first: a process that is about to go backward keeps its graph and waits, computing tiny
    evaluations. Any that has finished its share takes part in both, so a backward always finds a graph.

    Args:
        module: its `forward` is not called by any process alone.
        blocks: the parts of it to split, each gathered as a whole and dropped after it has run.
        tiny: evaluates the module by its `forward` (not by calling it) on as little as can be, and returns
            the output; with gradient, from an input that has one.

    Raises:
        RuntimeError: no process group.
    """

    def __init__(self, module: nn.Module, blocks: Iterable[nn.Module], tiny: Callable[[], Tensor]) -> None:
        from torch.distributed.fsdp import fully_shard, share_comm_ctx  # takes a second to import

        # of its own and not the device's: to agree must not wait for kernels
        self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._tiny = tiny
        self._idle: Tensor | None = None
        # or each block, a root of its own, would have streams of its own, and keep what others could use
        share_comm_ctx([fully_shard(block, reshard_after_forward=True) for block in blocks])
        module.register_forward_pre_hook(lambda *_: self.agree(Wish.EVALUATE))

    def agree(self, wish: Wish) -> None:
        """Return when all processes do what this one wishes; until then take part in what the others do."""
        while True:
            wishes = torch.tensor([wish is Wish.EVALUATE, wish is Wish.BACKWARD], dtype=torch.int32)
            torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, self._group)
            evaluate, backward = wishes.tolist()
            if evaluate:
                if wish is Wish.EVALUATE:
                    return
                with torch.set_grad_enabled(wish is Wish.MEET):
                    self._idle = self._tiny()
            elif wish is Wish.BACKWARD:
                return
            elif backward:
                assert self._idle is not None  # from the evaluation that the others go back through
                self._idle.sum().backward()  # type: ignore[no-untyped-call]
            else:
                self._idle = None
                return
