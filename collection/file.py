"""The collection file: a LoRA that ComfyUI and diffusers load as it is, with a catalogue in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from .atomic import atomic_write
from .catalogue import Catalogue
from .errors import CollectionError
from .layouts import check_weights, comfy_tensors, read_lora, weights_file
from .lora_weights import LoraWeights, Shapes
from .tensors import read_header, save_tensors
from .thumbnails import Pair, fit_thumbnails, pair_of

HEADER_WRITTEN = 2**20
"""Most bytes of a header we write: ComfyUI shows no metadata of files with more."""


def save_collection(
    path: str | os.PathLike[str],
    weights: LoraWeights,
    catalogue: Catalogue,
    others: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a collection atomically: temporary name, fsync, rename. Values are kept bit for bit.

    others: metadata for other programs (author, licence), kept as they are.
    Raises CollectionError when the header would be above 1 MiB (see `fitted`) or the disk is full; the
    previous file survives both.
    """
    check_weights(weights)
    with atomic_write(path) as temporary:
        save_tensors(temporary, comfy_tensors(weights), {**others, **catalogue.to_header()})
        size = read_header(temporary).size
        if size > HEADER_WRITTEN:
            raise CollectionError(
                f"{path}: the header would have {size} bytes, more than {HEADER_WRITTEN}, and ComfyUI would"
                " not show it; leave pictures out, or shorten the prompts"
            )


def load_collection(
    path: str | os.PathLike[str], shapes: Shapes | None = None
) -> tuple[LoraWeights, Catalogue]:
    """Weights, read into memory, and catalogue of a collection; `shapes` (module path -> (out, in)) checks
    that they fit.

    Raises CollectionError for a file without a valid catalogue, LoraFormatError for an unsound LoRA.
    """
    catalogue = read_catalogue(path)
    return read_lora(path, shapes).copied(), catalogue


def read_catalogue(path: str | os.PathLike[str]) -> Catalogue:
    """Read only the header of a collection. Headers above 8 MiB are refused unparsed."""
    return Catalogue.from_header(read_header(weights_file(Path(path))).metadata, str(path))


def with_thumbnails(
    catalogue: Catalogue,
    weights: LoraWeights,
    pairs: Mapping[str, Pair],
    others: Mapping[str, str] = MappingProxyType({}),
) -> Catalogue:
    """The catalogue with the largest thumbnails that keep the whole header within 1 MiB.

    pairs: effect name -> (source, result) pictures; effects that are not in it get no thumbnail.
    Raises CollectionError for an unknown effect name, and when not even the smallest thumbnails fit.
    """
    for name in pairs:
        _ = catalogue[name]
    bare = replace(catalogue, effects=tuple(replace(effect, thumbnail=None) for effect in catalogue.effects))
    room = HEADER_WRITTEN - _header_size(comfy_tensors(weights), {**others, **bare.to_header()})
    made = fit_thumbnails(pairs, room)
    return replace(bare, effects=tuple(replace(e, thumbnail=made.get(e.name)) for e in bare.effects))


def fitted(
    catalogue: Catalogue, weights: LoraWeights, others: Mapping[str, str] = MappingProxyType({})
) -> Catalogue:
    """The catalogue itself where a header with it keeps within 1 MiB, else with smaller thumbnails.

    Raises CollectionError when not even the smallest fit.
    """
    if _header_size(comfy_tensors(weights), {**others, **catalogue.to_header()}) <= HEADER_WRITTEN:
        return catalogue
    pairs = {
        effect.name: pair_of(effect.thumbnail, f"the thumbnail of effect {effect.name!r}")
        for effect in catalogue.effects
        if effect.thumbnail
    }
    return with_thumbnails(catalogue, weights, pairs, others)


def _header_size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Upper bound of the bytes of a safetensors header."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    for key, tensor in tensors.items():
        # the longest name of a dtype, and the largest offsets, stand for the real ones
        entries[key] = {"dtype": "F8_E5M2FNUZ", "shape": list(tensor.shape), "data_offsets": [total, total]}
    return len(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()) + 8
