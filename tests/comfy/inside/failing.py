"""Runs in ComfyUI's Python: a distillation that fails.

usage: failing.py EFFECTS.jsonl DATA.jsonl OUTPUT KIND   (prints one line of JSON: the message, and what the
page was told last)

KIND is "memory" (the device is full) or "numbers" (losses are not finite), both after two cycles; "disk" (as
"memory", and what was trained cannot be written), or "start" (the run does not even begin).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import server  # noqa: E402
import torch  # noqa: E402

from collectionlora.nodes.distil import _distil  # noqa: E402
from collectionlora.nodes.events import RunEvents  # noqa: E402
from collectionlora.training.config import distillation  # noqa: E402
from collectionlora.training.hosts.comfy import ComfyHost  # noqa: E402
from collectionlora.training.hosts.comfy_pocket import pocket_clip, pocket_model, pocket_vae  # noqa: E402
from collectionlora.training.run import DistillationRun  # noqa: E402
from collectionlora.training.run_config import Run, TeacherSampling, read_lists  # noqa: E402
from collectionlora.training.trainer import Trainer  # noqa: E402

SETTINGS = {
    "cycles": 9,
    "warm_cycles": 1,
    "batch": 2,
    "micro_batch": 2,
    "rank": 2,
    "alpha": 2.0,
    "save_every": 1,
}


class Page:
    """Keeps what it was told last."""

    told: Any = None

    def send_sync(self, event: str, data: Any) -> None:
        """Told to the page."""
        self.told = data


def main(effects: Path, data: Path, output: Path, kind: str) -> dict[str, Any]:
    """The message of the failure, and the last event."""
    page = server.PromptServer.instance = Page()
    run = Run(
        output,
        read_lists(effects, data),
        distill=distillation(SETTINGS, "pocket"),
        targets=TeacherSampling(1, 0.0),
        titles={"nothing": "No such effect"} if kind == "start" else {},
    )
    cycle = Trainer._cycle

    def failing(self: Trainer, record: Any) -> None:
        cycle(self, record)
        if self.cycle >= 2:
            if kind != "numbers":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            for parameter in self.student.parameters():
                parameter.data.fill_(float("nan"))
            self._update("student", self._warm_terms(self._batches(0)), record)

    def full(self: DistillationRun, **_: Any) -> None:
        raise OSError("no space left")

    Trainer._cycle = failing  # type: ignore[method-assign]
    if kind == "disk":
        DistillationRun.finish = full  # type: ignore[assignment, method-assign]
    with torch.inference_mode():
        host = ComfyHost(pocket_model(), pocket_clip(), pocket_vae(), 128, 16, True)
        try:
            with host.lend():
                _distil(run, host, RunEvents(output, 9), 0, None)
        except Exception as error:
            return {"message": f"{type(error).__name__}: {error}", "told": page.told}
    return {"message": "no failure"}


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:4]), sys.argv[4])))
