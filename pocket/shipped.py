"""What belongs to a pocket base beside it: its teachers, how they are used, and its judge."""

from __future__ import annotations

from pathlib import Path

from ..training.judging.judge import Judge
from ..training.run_config import read_run
from . import FOLDER
from .effects import EFFECTS


def teacher_files(weights: Path) -> dict[str, Path]:
    """The teachers by effect."""
    return {name: weights / "teachers" / f"{name}.safetensors" for name in EFFECTS}


def teacher_guidance() -> float:
    """The guidance with which the teachers are at their best: what their collection was made with."""
    return read_run(FOLDER / "collection.toml").targets.guidance


def judge_of(weights: Path) -> Judge:
    """The judge."""
    return Judge.load(weights / "judge.safetensors")
