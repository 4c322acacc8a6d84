"""What a run tells the page: one event a cycle, and the whole story for a page that was reloaded."""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..training.trainer import Record

REMEMBERED = 20

_runs: OrderedDict[str, RunEvents] = OrderedDict()


class RunEvents:
    """Events `collectionlora.run` of one run, with node and prompt id."""

    def __init__(self, cycles: int) -> None:
        context = get_executing_context()
        self.node = context.node_id if context else ""
        self.prompt = context.prompt_id if context else ""
        self.story: dict[str, Any] = {"cycles": cycles, "cycle": 0, "losses": {}}
        self._seconds: list[float] = []
        _runs[self.prompt] = self
        while len(_runs) > REMEMBERED:
            _runs.popitem(last=False)

    def plan(self, text: str) -> None:
        """The memory plan."""
        self._tell(plan=text)

    def phase(self, name: str, done: int, total: int) -> None:
        """Something before the cycles."""
        self._tell(phase=name, done=done, total=total)

    def cycle(self, record: Record) -> None:
        """A cycle has ended."""
        self._seconds = [*self._seconds[-19:], sum(record.seconds.values())]
        left = self.story["cycles"] - record.cycle - 1
        for term, loss in record.losses.items():
            line = self.story["losses"].setdefault(term, {"cycle": [], "loss": []})
            line["cycle"].append(record.cycle)
            line["loss"].append(loss)
        self._tell(
            phase="cycles",
            cycle=record.cycle + 1,
            loss=record.losses,
            skipped=record.skipped,
            memory=record.memory,
            seconds_left=round(left * sum(self._seconds) / len(self._seconds)),
        )

    def ended(self, reason: str, kept: Path | None) -> None:
        """The run stopped early."""
        self._tell(ended=reason, kept=str(kept) if kept else None)

    def _tell(self, **news: Any) -> None:
        self.story |= {key: value for key, value in news.items() if key != "loss"}
        message = {"node": self.node, "prompt_id": self.prompt, "time": time.time(), **news}
        PromptServer.instance.send_sync("collectionlora.run", message)


def story(prompt: str) -> dict[str, Any] | None:
    """All that was told about the run of a prompt: losses by term, phase, cycle, how it ended."""
    found = _runs.get(prompt)
    return None if found is None else {"node": found.node, "prompt_id": prompt, **found.story}
