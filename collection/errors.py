"""Errors of the collection layer: every message names the file, what is wrong in it, and the remedy."""

from __future__ import annotations


class CollectionError(ValueError):
    """A file that users share (collection, catalogue, LoRA, list) is broken, foreign or refused."""


class LoraFormatError(CollectionError):
    """A LoRA cannot be read: unknown layout, other architecture, wrong shapes, cut short, no plain LoRA."""
