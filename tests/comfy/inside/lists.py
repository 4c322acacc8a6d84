"""Runs in ComfyUI's Python: when nodes read their lists and folders again, and what they refuse in them.

usage: lists.py FOLDER   (an empty folder of the input folder; prints one line of JSON)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import comfy.cli_args
from PIL import Image

comfy.cli_args.args.cpu = True  # before anything asks for a device

import folder_paths  # noqa: E402

folder = Path(sys.argv[1])
folder_paths.set_input_directory(str(folder.parent))

from collectionlora.collection.jsonl import EffectEntry  # noqa: E402
from collectionlora.nodes import lessons  # noqa: E402


def changes(path: Path, file: Path) -> bool:
    """Whether a rewritten file is noticed where `path` is what the node is given."""
    before = lessons.changed(str(path), "none")
    file.write_bytes(file.read_bytes() + b"x")
    return before != lessons.changed(str(path), "none")


def refusal(prompts: str) -> str:
    """What is said of these prompts, or of two results of one source."""
    try:
        if prompts:
            lessons._teachers_of(folder, prompts)
        else:
            teacher = EffectEntry("fx", folder / "fx.safetensors", "x", "", "", "")
            lessons._samples_of(teacher, folder / "before", folder / "after")
    except ValueError as error:
        return str(error)
    return "not refused"


def main() -> None:
    """Two things that change, one that does not matter, two that are contradictory."""
    pictures, teacher = folder / "pictures", folder / "teacher"
    for one in (pictures, teacher, folder / "before" / "fx", folder / "after" / "fx"):
        one.mkdir(parents=True)
    (pictures / "a.png").write_bytes(b"a")
    (pictures / ".#a.png").symlink_to("user@machine.1234")  # an editor's lock
    (teacher / "adapter_model.safetensors").write_bytes(b"a")
    entry = {"lora_name": "a", "lora_path": "teacher", "data_type": ""}
    elsewhere = {"lora_name": "b", "lora_path": "/"}  # the whole disk is not looked through
    (folder / "effects.jsonl").write_text(f"{json.dumps(entry)}\n{json.dumps(elsewhere)}\n")
    for name in ("before/fx/a.png", "after/fx/a.png", "after/fx/a.jpg"):
        Image.new("RGB", (8, 8)).save(folder / name)
    found = {
        "beside a dangling link": changes(pictures, pictures / "a.png"),
        "in a teacher's folder": changes(folder / "effects.jsonl", teacher / "adapter_model.safetensors"),
        "beside a list": changes(folder / "effects.jsonl", pictures / "a.png"),
        "two prompts": refusal("a: one\na: two"),
        "two results": refusal(""),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
