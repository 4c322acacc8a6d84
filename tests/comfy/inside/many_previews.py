"""Runs in ComfyUI's Python: more previews of an effect than are kept.

usage: many_previews.py FOLDER   (prints one line of JSON: the cycles in the story, on the
disk, and read again)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import server  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from collectionlora.collection.catalogue import Effect  # noqa: E402
from collectionlora.nodes.events import RunEvents  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from models import Nobody  # noqa: E402

server.PromptServer.instance = Nobody()
folder, effects = Path(sys.argv[1]), {"Snow fall": Effect("snow_fall", "Snow", "<s>", "<s> snow")}
events = RunEvents(folder, 1000)
events.shows(effects, ())
for cycle in range(0, 1000, 10):
    events.preview(cycle, {"Snow fall": Image.new("RGB", (900, 600))}, torch.ones(1, 1))
again = RunEvents(folder, 1000)
again.shows(effects, ())
told, read = ([one["cycle"] for one in run.story["previews"]["Snow fall"]] for run in (events, again))
kept = sorted(int(path.stem) for path in (folder / "previews" / "snow_fall").glob("*.jpg"))
print(json.dumps({"told": told, "read": read, "kept": kept}))
