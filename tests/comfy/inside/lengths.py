"""Runs in ComfyUI's Python: what Distillation Settings makes of `cycles`.

usage: lengths.py   (prints one line of JSON: cycles -> warm cycles of the preset *preview*)
"""

from __future__ import annotations

import json

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

from collectionlora.nodes.settings import DistillationSettings  # noqa: E402


def warm(cycles: int) -> int:
    made = DistillationSettings.execute("preview", cycles, 0, 0.0, 40, 4.0, 0, "")
    return int(made.args[0].distill.warm_cycles)


if __name__ == "__main__":
    print(json.dumps({cycles: warm(cycles) for cycles in (0, 150, 300, 600)}))
