"""Runs in ComfyUI's Python: files and folders whose names hold letters and accents apart.

usage: names_of_a_mac.py FOLDER   (an empty one; prints one line of JSON: the teachers' names, and the name of
    the folder whose pictures are the first one's)
"""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

from collectionlora.nodes.lessons import _own, _teachers_of  # noqa: E402

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    apart = unicodedata.normalize("NFD", "Grün")
    (folder / f"{apart}.safetensors").touch()
    (folder / apart).mkdir()
    (teacher,) = _teachers_of(folder, "Grün: make it green")
    own = _own(folder, teacher.lora_name)
    print(json.dumps([teacher.lora_name, teacher.prompt, own is not None and own.name == apart]))
