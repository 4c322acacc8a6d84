"""Runs in ComfyUI's Python: what Distillation Settings makes of its inputs.

usage: settings.py   (prints one line of JSON: cycles -> warm cycles of the preset *preview*, cycles
    of imitation of *imitation*; what `more` says
    of teacher images -> how these are made, or the error)
"""

from __future__ import annotations

import json

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

from collectionlora.nodes.settings import DistillationSettings, Settings  # noqa: E402
from collectionlora.training.config import ConfigError  # noqa: E402


def made(preset: str, cycles: int, more: str) -> Settings:
    result: Settings = DistillationSettings.execute(preset, cycles, 0, 0.0, 100, 4.0, 0, more).args[0]
    return result


def targets(more: str) -> list[float] | str:
    try:
        found = made("default", 0, more).targets
    except (ConfigError, ValueError) as error:
        return str(error)
    return [found.steps, found.guidance, found.batch]


BATCHES = ("[targets]\nbatch = 8", "[targets]\nbatch = 0")
OTHERS = ("", "[targets]\nsteps = 3", "targets = 3", 'targets = ["to_q"]')


if __name__ == "__main__":
    warm = {cycles: made("preview", cycles, "").distill.warm_cycles for cycles in (0, 150, 300, 600)}
    imitated = {cycles: made("imitation", cycles, "").distill.imitation_cycles for cycles in (0, 50, 8000)}
    print(
        json.dumps(
            {
                "warm": warm,
                "imitated": imitated,
                "targets": {more: targets(more) for more in BATCHES + OTHERS},
            }
        )
    )
