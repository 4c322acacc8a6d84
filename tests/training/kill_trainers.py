"""Run by a test, not collected: trains the tiny distillation in forked children and kills them with SIGKILL.

`python kill_trainers.py FOLDER RUNS`: each run starts anew, saves after every cycle, is killed at a random
point, and goes on in another child. One import serves all children. Prints the cycle in which each was
killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import tiny
import torch

from collectionlora.training.checkpoint import load_state

VALUES = {"cycles": 5, "warm_cycles": 1, "batch": 2, "micro_batch": 2, "ema": 0.9, "lr_schedule": "cosine"}


def train(folder: Path) -> None:
    """In the child: go on from the folder's checkpoint, if there is one, to the end."""
    torch.set_num_threads(1)
    path = folder / "state.safetensors"
    trainer = tiny.world(folder.parent, VALUES).trainer
    if path.exists():
        trainer.resume(path)
    for _ in trainer.run():
        trainer.save(path)


def start(folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        train(folder)
        code = 0
    finally:
        os._exit(code)


def finished(folder: Path) -> bytes:
    """Run a child to its end; the bytes of its last checkpoint."""
    _, status = os.waitpid(start(folder), 0)
    assert status == 0, f"a child ended with {status}"
    return (folder / "state.safetensors").read_bytes()


def killed(folder: Path, delay: float) -> bool:
    """Kill a child after a delay; whether it was still running."""
    child = start(folder)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(root: Path, runs: int) -> None:
    tiny.write_teachers(root)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports for two seconds: here, for all children
    begin = time.monotonic()
    whole = finished(root / "whole")
    length = time.monotonic() - begin
    draw, cycles = random.Random(0), []
    for run in range(runs):
        delay, attempt = draw.uniform(0.0, length), 0
        while not killed(folder := root / f"{run}-{attempt}", delay):
            delay, attempt = delay / 2, attempt + 1  # it was faster than the first
        path = folder / "state.safetensors"
        cycles.append(load_state(path)["cycle"] if path.exists() else 0)  # whole, whenever it is there
        assert finished(folder) == whole, f"run {run}, killed in cycle {cycles[-1]}, ended otherwise"
    print(json.dumps(cycles))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
