"""Runs in ComfyUI's Python: which pictures and instructions General Images pairs.

usage: general_images.py FOLDER   (an input folder with a folder `photos`; prints one line of JSON:
    instructions -> pairs of picture and instruction)
"""

from __future__ import annotations

import json
import sys

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import folder_paths  # noqa: E402

from collectionlora.nodes.lessons import GeneralImages  # noqa: E402

SOME = ("", "one", "one\n\n two \nthree\nfour")


def pairs(instructions: str) -> list[tuple[str, str]]:
    made = GeneralImages.execute("photos", instructions).args[0]
    return [(one.source_image.name, one.instruction) for one in made]


if __name__ == "__main__":
    folder_paths.set_input_directory(sys.argv[1])
    print(json.dumps({instructions: pairs(instructions) for instructions in SOME}))
