"""Run by a test, not collected: one process of a tiny distillation in float64.

`python several_workers.py TEACHERS OUT CYCLES [--stop-at N] [--shard] [--micro-batch N]` with torchrun's
environment goes on from OUT/state if it is there, and writes OUT/rank<N>.json with the exact values of
weights and losses. With --stop-at the last process is asked to stop in that cycle; with --shard each holds a
part of the network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import tiny
import torch
from torch.distributed.tensor import DTensor

from collectionlora.training.data import Sample
from collectionlora.training.errors import Cancelled
from collectionlora.training.sharding import Pace
from collectionlora.training.workers import Workers

VALUES = {
    "warm_cycles": 2,
    "imitation_cycles": 12,
    "on_policy": 0.5,
    "batch": 6,
    "ema": 0.9,
    "fake_ratio": 2,
    "imitation_gain": 1.5,
    "save_every": 1,
}


def sharded(net: tiny.Net) -> Pace:
    def idle() -> torch.Tensor:
        x = torch.zeros(1, *tiny.LATENT, dtype=torch.float64, requires_grad=torch.is_grad_enabled())
        text = x.new_zeros(1, tiny.TOKENS, tiny.EMBEDDING)
        return net.forward(x, x.new_ones(1), text, x)

    return Pace(net, [net.enter, net.middle, net.leave], idle)


def smaller(sample: Sample) -> Sample:
    assert sample.target is not None
    return replace(sample, source=sample.source[..., :-2], target=sample.target[..., :-2])


def local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def gloo_threads() -> Iterator[str]:
    for name in Path("/proc/self/task").glob("*/comm"):
        if "gloo" in (thread := name.read_text().strip()):
            yield thread


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("teachers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("cycles", type=int)
    parser.add_argument("--stop-at", type=int, default=-1)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--sizes", action="store_true", help="pictures of two sizes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with Workers.joined() as workers:
        train(workers, args)
    if not args.shard and (threads := list(gloo_threads())):
        sys.exit(f"{threads} may abort the process while the interpreter ends")


def train(workers: Workers, args: argparse.Namespace) -> None:
    def cancelled() -> bool:
        return workers.rank == workers.count - 1 and trainer.cycle == args.stop_at

    values = {**VALUES, "cycles": args.cycles, "micro_batch": args.micro_batch}
    lessons = tiny.lessons(dtype=torch.float64)
    if args.sizes:
        effects = {name: [some[0], smaller(some[1])] for name, some in lessons.effects.items()}
        lessons = replace(lessons, effects=effects)
    world = tiny.world(
        args.teachers, values, dtype=torch.float64, cancelled=cancelled, stir=True, lessons_=lessons
    )
    trainer, state = world.trainer, args.out / "state.safetensors"
    if args.shard:
        workers = replace(workers, pace=sharded(world.net))
    trainer.workers = workers
    if state.exists():
        trainer.resume(state)
    workers.wait()
    records, stopped = [], False
    try:
        for record in trainer.run():
            records.append(record)
    except Cancelled:
        stopped = True
    if workers.leads:
        trainer.save(state)
    weights = {
        f"{role} {name}": value.tolist()
        for role, adapter in world.roles.adapters.items()
        for name, value in adapter.state_dict().items()
    }
    content = {
        "cycle": trainer.cycle,
        "stopped": stopped,
        "weights": weights,
        "average": {name: value.tolist() for name, value in trainer.average.items()},
        "norms": [record.grad_norms for record in records],
        "losses": [record.losses for record in records],
        "evaluations": world.cost,
        "held": sum(local(parameter).numel() for parameter in world.net.parameters()),
    }
    (args.out / f"rank{workers.rank}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
