"""Make all weights of the pocket world from nothing, one step after the other.

`python -m collectionlora.pocket.train --out DIR` makes DIR/weights, like `pocket/weights`, from the pictures
and lists that ship and the picture packages (`COLLECTIONLORA_IMAGES`). The same command goes on after a stop:
a step that has ended is not taken again, and most go on within. `--share 0.01` takes a hundredth of every
length, to try it. `--bfloat16` is faster where the device computes in bfloat16, `--compile` where there is a
C++ compiler.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...collection.atomic import atomic_write, write_text
from ...training.speed import bfloat16_slowdown
from .. import FEW_STEP, FOLDER

PACKAGE = __package__.rsplit(".", 2)[0]
RUNS = ("collection", "few_steps")
"""Run files beside `pocket/`'s code, in order: each makes the collection, the second from the first's."""
LENGTH = re.compile(r"^(\w*cycles) = (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command of this package: its module, and its arguments as on a command line."""

    name: str
    module: str
    arguments: tuple[str, ...]
    makes: tuple[tuple[Path, Path], ...] = ()
    """Files of the step and where they belong among the weights."""


def steps(out: Path, share: float = 1.0, bfloat16: bool = False, compiled: bool = False) -> Iterator[Step]:
    """All steps in order, with the lengths of the weights that ship, times `share`."""
    weights, pool, words = out / "weights", out / "pool", out / "words"

    def step(name: str, *arguments: object, makes: tuple[tuple[Path, Path], ...] = ()) -> Step:
        return Step(name, f"{PACKAGE}.pocket.train.{name}", tuple(map(str, arguments)), makes)

    def part(length: int) -> int:
        return max(3, round(length * share))  # a third of the pictures is averaged for the judge

    autoencoder = weights / "autoencoder.safetensors"
    yield step("pool", "--out", pool, "--count", part(160))
    yield step("autoencoder", "--pool", pool, "--out", autoencoder, "--steps", part(2400))
    yield step("text", "--out", words, "--steps", part(1500))
    faster = [*(["--bfloat16"] if bfloat16 else []), *(["--compile"] if compiled else [])]
    base, common = out / "base", ("--pool", pool, "--autoencoder", autoencoder, *faster)
    found = tuple((base / name, weights / name) for name in ("transformer.safetensors", "text.safetensors"))
    yield step("base", *common, "--out", base, "--start", words, "--steps", part(35000), makes=found)
    yield step("teachers", "--weights", weights, "--out", weights / "teachers", "--steps", part(900), *faster)
    yield step(
        "judge", "--weights", weights, "--steps", part(3000), "--pictures", part(300), "--held-out", 120
    )
    few = ((out / FEW_STEP.stem / FEW_STEP.name, weights / FEW_STEP.name),)
    yield step("few_step", "--weights", weights, "--out", out / "few_step", "--cycles", part(400), makes=few)
    for name in RUNS:
        state, made = (out / name / file for file in ("state.safetensors", "collection.safetensors"))
        run = ("distill", str(out / f"{name}.toml"), *faster, *(["--resume"] if state.exists() else []))
        yield Step(name, PACKAGE, run, ((made, weights / made.name),))


def write_runs(out: Path, share: float = 1.0) -> None:
    """The shipped run files and their list of effects in `out`, where they mean the weights made there."""
    lists = {name: (FOLDER / f"{name}.jsonl").as_posix() for name in ("data", "general")}
    for name in RUNS:
        text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
        places = {"output": name, "base": "weights", "extend": f"{RUNS[0]}/collection.safetensors", **lists}
        for key, place in places.items():
            text = re.sub(rf'^{key} = ".*"$', f'{key} = "{place}"', text, flags=re.MULTILINE)
        lengths = {name: math.ceil(int(length) * share) for name, length in LENGTH.findall(text)}
        text = LENGTH.sub(lambda line, lengths=lengths: f"{line[1]} = {lengths[line[1]]}", text)
        write_text(out / f"{name}.toml", text)
    shutil.copy(FOLDER / "effects.jsonl", out)  # it names the teachers' files as they lie beside it


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the length of every step")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 what takes longest")
    parser.add_argument("--compile", action="store_true", help="compile what takes longest")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.bfloat16 and (slowdown := bfloat16_slowdown(device)) > 1:
        print(f"This processor is {slowdown:.0f} times slower in bfloat16: leave --bfloat16 out")
    out = args.out.resolve()
    (out / "ended").mkdir(parents=True, exist_ok=True)
    (out / "weights").mkdir(exist_ok=True)
    write_runs(out, args.share)
    for step in steps(out, args.share, args.bfloat16, args.compile):
        ended = out / "ended" / step.name
        if ended.exists():
            continue
        print(f"# {step.name}: {step.module} {' '.join(step.arguments)}", flush=True)
        code = subprocess.run([sys.executable, "-m", step.module, *step.arguments], check=False).returncode
        if code:
            sys.exit(f"{step.name} ended with {code}; the same command goes on from there")
        for made, place in step.makes:
            with atomic_write(place) as temporary:
                shutil.copy(made, temporary)
        ended.touch()
    print(f"All weights are in {out / 'weights'}")


if __name__ == "__main__":
    main()
