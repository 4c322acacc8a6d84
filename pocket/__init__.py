"""The pocket world: a trained Qwen-Image-Edit at pocket size, its data, effects and shipped weights."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
"""Folder of the shipped weights."""
