"""What a run tells the page: one event a cycle, and the whole story for a page that was reloaded."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..collection.atomic import atomic_write
from ..training.prompting import TagReport
from ..training.trainer import Record

REMEMBERED = 20
PREVIEWS = "previews"
NEWS_ONLY = ("loss", "effect_loss", "compared")
"""What an event adds to a part of the story that is kept under another name."""

_runs: OrderedDict[str, RunEvents] = OrderedDict()


class RunEvents:
    """Events `collectionlora.run` of one run, with node and prompt id.

    Args:
        folder: the run's; previews are kept in it.
    """

    def __init__(self, folder: Path, cycles: int) -> None:
        context = get_executing_context()
        self.node = context.node_id if context else ""
        self.prompt = context.prompt_id if context else ""
        self.folder = folder
        self.story: dict[str, Any] = {
            "name": folder.name,
            "cycles": cycles,
            "cycle": 0,
            "losses": {},
            "effects": {},
            "previews": self._previews(),
            "nearest": {},
        }
        for cycle in self.story["previews"]:
            file = self.preview_file(cycle).with_suffix(".json")
            if file.is_file():
                self.story["nearest"][cycle] = json.loads(file.read_text(encoding="utf-8"))
        self.save_wanted = False
        """Set by the page: write the collection after this cycle and go on."""
        self._seconds: list[float] = []
        _runs[self.prompt] = self
        _runs.move_to_end(self.prompt)
        while len(_runs) > REMEMBERED:
            _runs.popitem(last=False)

    def plan(self, text: str) -> None:
        """The memory plan."""
        self._tell(plan=text)

    def prompts(self, tags: TagReport) -> None:
        """How alike the student prompts are: cosines (N,N) of what the encoder makes of them."""
        self._tell(prompts={"names": tags.names, "matrix": _rounded(tags.chosen)})

    def phase(self, name: str, done: int, total: int) -> None:
        """Something before the cycles."""
        self._tell(phase=name, done=done, total=total)

    def cycle(self, record: Record) -> None:
        """A cycle has ended."""
        by_effect = _by_effect(record)
        self._seconds = [*self._seconds[-19:], sum(record.seconds.values())]
        mean = sum(self._seconds) / len(self._seconds)
        for line, losses in (
            (self.story["losses"], record.losses),
            (self.story["effects"], by_effect),
        ):
            for name, loss in losses.items():
                points = line.setdefault(name, {"cycle": [], "loss": []})
                points["cycle"].append(record.cycle)
                points["loss"].append(loss)
        self._tell(
            phase="cycles",
            cycle=record.cycle + 1,
            loss=record.losses,
            effect_loss=by_effect,
            skipped=record.skipped,
            memory=record.memory,
            seconds_each=round(mean, 3),
            seconds_left=round(mean * (self.story["cycles"] - record.cycle - 1)),
        )

    def preview(self, cycle: int, picture: Image.Image, names: list[str], likeness: Tensor) -> None:
        """Keep a picture of what the student can do after `cycle` cycles, and how near each effect's part of
        it is to each one's teacher image (N,N)."""
        path = self.preview_file(cycle)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            picture.save(temporary, "JPEG", quality=88)
        nearest = {"names": names, "matrix": _rounded(likeness)}
        with atomic_write(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(nearest), encoding="utf-8")
        self.story["nearest"][cycle] = nearest
        self._tell(previews=self._previews(), compared={cycle: nearest})

    def preview_file(self, cycle: int) -> Path:
        """Where the picture of a cycle is, if there is one."""
        return self.folder / PREVIEWS / f"{cycle:07d}.jpg"

    def saved(self, path: Path) -> None:
        """The collection was written because the page asked for it."""
        self.save_wanted = False
        self._tell(saved=str(path))

    def ended(self, reason: str, kept: Path | None) -> None:
        """The run has stopped; an empty reason means that it is complete."""
        self._tell(phase="ended", ended=reason, kept=str(kept) if kept else None)

    def _previews(self) -> list[int]:
        return sorted(int(path.stem) for path in (self.folder / PREVIEWS).glob("[0-9]*.jpg"))

    def _tell(self, **news: Any) -> None:
        self.story |= {key: value for key, value in news.items() if key not in NEWS_ONLY}
        message = {"node": self.node, "prompt_id": self.prompt, "time": time.time(), **news}
        PromptServer.instance.send_sync("collectionlora.run", message)


def find_run(prompt: str) -> RunEvents | None:
    """The run of a prompt; without one the latest."""
    if not prompt:
        return next(reversed(_runs.values()), None)
    return _runs.get(prompt)


def story(run: RunEvents) -> dict[str, Any]:
    """All that was told about a run: losses by term and by effect, phase, cycle, how it ended."""
    return {"node": run.node, "prompt_id": run.prompt, **run.story}


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in line] for line in matrix.tolist()]


def _by_effect(record: Record) -> dict[str, float]:
    """The student's mean loss over the terms of each effect of the cycle."""
    means = {}
    for effect, terms in record.effects.items():
        own = [loss for term, loss in terms.items() if term != "fake"]
        if own:
            means[effect] = sum(own) / len(own)
    return means
