"""Write what the pocket's own distillation reads: small picture folders and the paper's three lists.

`python -m collectionlora.pocket.train.lists` fills pocket/pictures/{train,tune,test} and writes
pocket/effects.jsonl, data.jsonl and general.jsonl. After it, `collectionlora distill pocket/collection.toml`
needs no picture package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...collection.atomic import write_text
from .. import FOLDER, PICTURES
from ..edits import sample_edit
from ..effects import EFFECTS
from ..images import ImageSource

COUNTS = {"train": 96, "tune": 32, "test": 40}
GENERAL = 4800
"""Lessons of the general stream: a line each, and what is learnt of few does not hold for others."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="node_modules folder with the picture packages")
    args = parser.parse_args()
    images = ImageSource(args.images)
    paths = {split: images.export(split, PICTURES / split, n) for split, n in COUNTS.items()}
    sources = [path.relative_to(FOLDER).as_posix() for path in paths["train"]]
    rng = np.random.default_rng(41)
    write(
        FOLDER / "effects.jsonl",
        (
            {
                "lora_name": effect.name,
                "lora_path": f"weights/teachers/{effect.name}.safetensors",
                "prompt": effect.teacher_prompt,
                "data_type": effect.category,
            }
            for effect in EFFECTS.values()
        ),
    )
    write(
        FOLDER / "data.jsonl",
        (
            {"source_image": source, "instruction": effect.teacher_prompt, "lora_name": effect.name}
            for effect in EFFECTS.values()
            for source in rng.permutation(sources).tolist()
        ),
    )
    rng = np.random.default_rng(40)
    write(
        FOLDER / "general.jsonl",
        (
            {"source_image": sources[i % len(sources)], "instruction": sample_edit(rng).instruction}
            for i in range(GENERAL)
        ),
    )


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
