"""Pictures of what the student makes of each effect while it learns: a few effects at a time, in turn."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..training.likeness import SIDE, likeness
from ..training.pictures import to_pil
from ..training.run import DistillationRun
from ..training.sheets import SheetRow, contact_sheet
from .events import RunEvents

EACH = 6
"""Effects a preview: each takes a sample, and training waits for it."""
CELL = 128


class Previews:
    """Previews of a run that is prepared. All effects are shown on one source and with fixed noise, so that
    pictures of other cycles and of other effects can be compared."""

    def __init__(self, job: DistillationRun, events: RunEvents) -> None:
        self.job, self.events = job, events
        self.titles = dict(zip(job.effects, (one.title for one in job.prepared.catalogue.effects)))
        self.targets: dict[str, Tensor] = {}
        """As small as they are compared: there may be many."""
        for name, (source, target) in job.shown():
            if not self.targets:
                events.keep_picture("", "source", to_pil(source))
                self.source = _small(source)
            events.keep_picture(name, "target", to_pil(target))
            self.targets[name] = _small(target)

    def make(self) -> Image.Image:
        """Show those effects whose turn it is; the page is told. Returns them as a sheet."""
        turn = sorted(self.targets, key=self.events.shown_last)[:EACH]
        students = self.job.preview(turn)
        found = likeness(self.source, torch.stack([*self.targets.values()]), torch.stack(students))
        pictures = {name: to_pil(student) for name, student in zip(turn, students)}
        self.events.preview(self.job.trainer.cycle, pictures, found)
        rows = [
            SheetRow(self.titles[name], (self.source, self.targets[name], student))
            for name, student in zip(turn, students)
        ]
        given = {name in self.job.prepared.given for name in turn}
        target = " or ".join("your picture" if one else "teacher" for one in sorted(given))
        return contact_sheet(rows, ["source", target, "student"], cell=CELL)


def _small(image: Tensor) -> Tensor:
    """(3,H,W), as `likeness` looks at it."""
    image = image.float().cpu()  # Apple's devices average over no fractions of pixels
    scale = SIDE / max(image.shape[1:])
    return F.interpolate(image[None], scale_factor=scale, mode="area")[0] if scale < 1 else image
