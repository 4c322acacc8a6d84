"""Lessons on disk: shards of (source, instruction, target) made once and read many times.

Drawing a pair costs as much as a training step of the pocket base, so workers draw ahead of it. `python -m
collectionlora.pocket.train.pool --out DIR --first 0 --count 100` writes shards 0..99; a shard is the same
for its number wherever it is made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...collection.atomic import atomic_write
from ..edits import sample_edit
from ..images import ImageSource

SOURCES = 160
"""Sources in a shard."""
EDITS = 3
"""Edits of each source."""


def draw_shard(images: ImageSource, number: int) -> dict[str, NDArray]:
    """One shard: `source` (SOURCES,H,W,3) and `target` (SOURCES*EDITS,H,W,3) uint8, `instruction` as JSON
    bytes.

    Target i belongs to source i // EDITS. Only pictures of the training split are used.
    """
    rng = np.random.default_rng([20, number])
    sources, targets, instructions = [], [], []
    for _ in range(SOURCES):
        source = images.sample(rng, "train")
        sources.append(source)
        for _ in range(EDITS):
            edit = sample_edit(rng)
            targets.append(edit.apply(source, rng))
            instructions.append(edit.instruction)
    return {
        "source": to_bytes(np.stack(sources)),
        "target": to_bytes(np.stack(targets)),
        "instruction": np.frombuffer(json.dumps(instructions).encode(), np.uint8),
    }


def to_bytes(images: NDArray) -> NDArray[np.uint8]:
    """Images in [0,1] as rounded uint8."""
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--images", type=Path, help="node_modules folder with the picture packages")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images = ImageSource(args.images)
    for number in range(args.first, args.first + args.count):
        path = args.out / f"{number:05d}.npz"
        if not path.exists():
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **draw_shard(images, number))


if __name__ == "__main__":
    main()
