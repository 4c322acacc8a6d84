"""What a run tells the page: one event a cycle, and the whole story for a page that was reloaded."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..collection.atomic import atomic_write, write_text
from ..collection.catalogue import Effect, slug
from ..training.prompting import TagReport
from ..training.record import Losses, Record

REMEMBERED = 20
PREVIEWS = "previews"
KEPT = 32
"""Most pictures of an effect."""
LARGEST = 384
"""Pixels of the longer side of a kept picture."""
CANCELLED = "cancelled"
"""How a run ended that the user stopped."""
ADDED = {"loss": "losses", "effect_loss": "effects"}
"""News that are the next points of lines of the story."""

_runs: deque[RunEvents] = deque(maxlen=REMEMBERED)


class RunEvents:
    """Events `collectionlora.run` of one run, with the ids of node, prompt and workflow.

    The story is what all events add up to, and `told` is how many they were: a page that has the story knows
    which event is the next one, and adds it up as `_tell` does.

    Args:
        folder: the run's; previews are kept in it.
        workflow: its id in the page that queued it, for nodes of two workflows may have one id; "" where it
            came without one.
    """

    def __init__(self, folder: Path, cycles: int, workflow: str = "") -> None:
        context = get_executing_context()
        self.node = context.node_id if context else ""
        self.prompt = context.prompt_id if context else ""
        self.workflow = workflow
        self.folder = folder
        self.kept: Path | None = None
        """The collection, once it is written."""
        self.story: dict[str, Any] = {
            "told": 0,
            "name": folder.name,
            "cycles": cycles,
            "cycle": 0,
            "losses": {},
            "effects": {},
            "shown": [],
            "previews": {},
        }
        self.save_wanted = False
        """Set by the page: write the collection after this cycle and go on."""
        self._lock = threading.Lock()  # the page asks in another thread
        _runs.append(self)

    def plan(self, text: str) -> None:
        """The memory plan."""
        self._tell(plan=text)

    def prompts(self, tags: TagReport) -> None:
        """How alike the student prompts are: cosines (N,N) of what the encoder makes of them."""
        self._tell(prompts={"names": tags.names, "matrix": _rounded(tags.chosen)})

    def phase(self, name: str, done: int, total: int) -> None:
        """Something before the cycles."""
        self._tell(phase=name, done=done, total=total)

    def resumed(self, cycle: int, losses: Losses, effects: Losses) -> None:
        """The run goes on after so many cycles, whose losses these are."""
        self._tell(cycle=cycle, losses=copy.deepcopy(losses), effects=copy.deepcopy(effects))

    def cycle(self, record: Record, skipped: int, each: float, left: float) -> None:
        """A cycle has ended; so many were skipped so far. each, left: seconds of a cycle, and to the end."""
        self._tell(
            phase="cycles",
            cycle=record.cycle + 1,
            loss=record.losses,
            effect_loss=record.effect_losses,
            skipped=skipped,
            memory=record.memory,
            seconds_each=round(each, 3),
            seconds_left=round(left),
        )

    def shows(self, effects: Mapping[str, Effect], given: Collection[str]) -> None:
        """All effects of the run, by its names for them; the wanted result of `given` is the user's picture.
        Pictures that an earlier run left in the folder are shown again."""
        shown = [{"name": n, "title": effect.title, "given": n in given} for n, effect in effects.items()]
        previews = {}
        for name in effects:
            files = sorted(self._folder(name).glob("[0-9]*.json"))
            likes = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            previews[name] = [
                {"cycle": int(file.stem), "like": like}
                for file, like in zip(files, likes)
                if len(like) == len(effects)
            ]
        self._tell(shown=shown, previews=previews)

    def knows(self, name: str) -> bool:
        """Whether the run has an effect of that name."""
        return name in self.story["previews"]

    def shown_last(self, name: str) -> int:
        """The cycle of an effect's latest picture; -1 if there is none."""
        made = self.story["previews"][name]
        return made[-1]["cycle"] if made else -1

    def preview(self, cycle: int, pictures: Mapping[str, Image.Image], likeness: Tensor) -> None:
        """Keep pictures of what the student makes of some effects after `cycle` cycles, and how near each is
        to every effect's wanted result, (pictures, effects). Of too many pictures the one goes that
        others are nearest to."""
        previews = {}
        for (name, picture), like in zip(pictures.items(), _rounded(likeness)):
            self.keep_picture(name, f"{cycle:07d}", picture)
            write_text(self.picture(name, f"{cycle:07d}").with_suffix(".json"), json.dumps(like))
            made = [one for one in self.story["previews"][name] if one["cycle"] != cycle]
            made.append({"cycle": cycle, "like": like})
            if len(made) > KEPT:
                cycles = [one["cycle"] for one in made]
                gone = min(range(1, KEPT), key=lambda at: cycles[at + 1] - cycles[at - 1])
                for file in self._folder(name).glob(f"{cycles[gone]:07d}.*"):
                    with suppress(OSError):  # Windows keeps one that a page is just shown
                        file.unlink()
                del made[gone]
            previews[name] = made
        self._tell(previews=previews)

    def keep_picture(self, name: str, which: str, picture: Image.Image) -> None:
        """Keep one picture of an effect, or "" for all, small enough for the page."""
        path = self.picture(name, which)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.thumbnail((LARGEST, LARGEST))
        with atomic_write(path) as temporary:
            picture.save(temporary, "JPEG", quality=88)

    def picture(self, name: str, which: str) -> Path:
        """Where a picture of an effect is, if there is one: "source" (of effect ""), "target", or a cycle's
        number in seven digits."""
        return self._folder(name) / f"{which}.jpg"

    def _folder(self, name: str) -> Path:
        return self.folder / PREVIEWS / (slug(name) if name else "")

    def saved(self) -> None:
        """The collection was written because the page asked for it."""
        self.save_wanted = False
        self._tell(saved=str(self.kept))

    def ended(self, reason: str) -> None:
        """The run has stopped: complete without a reason, by the user with `CANCELLED`, else failed."""
        self._tell(phase="ended", ended=reason, kept=str(self.kept) if self.kept else None)

    def so_far(self) -> dict[str, Any]:
        """The whole story: losses by term and by effect, phase, cycle, how it ended."""
        with self._lock:
            return {**self._ids(), **copy.deepcopy(self.story)}

    def _ids(self) -> dict[str, str]:
        return {"node": self.node, "prompt_id": self.prompt, "workflow": self.workflow}

    def _tell(self, **news: Any) -> None:
        with self._lock:
            news["told"] = self.story["told"] + 1
            previews = self.story["previews"] | news.get("previews", {})
            self.story |= {key: value for key, value in news.items() if key not in ADDED}
            self.story["previews"] = previews
            for key, lines in ADDED.items():
                for name, loss in news.get(key, {}).items():
                    line = self.story[lines].setdefault(name, {"cycle": [], "loss": []})
                    line["cycle"].append(news["cycle"] - 1)
                    line["loss"].append(loss)
        message = {**self._ids(), "time": time.time(), **news}
        PromptServer.instance.send_sync("collectionlora.run", message)


def find_run(wanted: Mapping[str, str]) -> RunEvents | None:
    """The latest run, of ?prompt=ID, ?node=ID and ?workflow=ID where these are given and the run has them."""
    prompt, node, workflow = (wanted.get(name) for name in ("prompt", "node", "workflow"))
    for run in reversed([*_runs]):
        of_workflow = not workflow or run.workflow in ("", workflow)
        if (not prompt or run.prompt == prompt) and (not node or run.node == node) and of_workflow:
            return run
    return None


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in line] for line in matrix.tolist()]
