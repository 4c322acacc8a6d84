"""Tensor files: safetensors headers read with suspicion, mapped tensors, `model.pt` without its code."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic import atomic_write
from .errors import LoraFormatError

HEADER_REFUSED = 8 * 2**20
"""Headers above this many bytes are refused before they are parsed."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    """key -> {"dtype": str, "shape": list[int], "data_offsets": [int, int]}, in file order."""
    size: int
    """bytes of the header, without the eight of its length."""


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; the tensors are not touched.

    Raises LoraFormatError for a missing, truncated, oversized or malformed file.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _truncated(path, f"it has {total} bytes, too few for a header")
            (length,) = struct.unpack("<Q", prefix)
            # the first bytes of a pickle or zip, read as a length, are beyond any limit
            if length > HEADER_REFUSED and prefix[:2] in (b"PK", b"\x80\x02"):
                raise LoraFormatError(f"{path}: a PyTorch pickle, not safetensors; save it as .safetensors")
            if length > HEADER_REFUSED:
                raise LoraFormatError(
                    f"{path}: its header claims {length} bytes, more than {HEADER_REFUSED}, so it was not"
                    " read; this is no LoRA file, or a damaged one: fetch it again from a source you trust"
                )
            if 8 + length > total:
                raise _truncated(path, f"its header alone needs {8 + length} of {total} bytes")
            raw = file.read(length)
    except FileNotFoundError as error:
        raise LoraFormatError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise LoraFormatError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    header = _parse_header(path, raw, length)
    end = max((entry["data_offsets"][1] for entry in header.tensors.values()), default=0)
    if 8 + length + end > total:
        raise _truncated(path, f"its header promises {8 + length + end} bytes, the file has {total}")
    return header


def _truncated(path: Path, why: str) -> LoraFormatError:
    return LoraFormatError(f"{path}: the file is truncated: {why}; fetch it again")


def _parse_header(path: Path, raw: bytes, length: int) -> Header:
    try:
        content = json.loads(raw.decode("utf-8"))
        metadata = content.pop("__metadata__", None) or {}
        for key, value in metadata.items():
            if not isinstance(value, str):
                raise ValueError(f"metadata {key!a} is not text")
        for key, entry in content.items():
            begin, end = entry["data_offsets"]
            sizes = [begin, end, *entry["shape"]]
            if (
                not _is_name(key)
                or not isinstance(entry["dtype"], str)
                or not all(type(n) is int and n >= 0 for n in sizes)
            ):
                raise ValueError(f"tensor {key!a} is malformed")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LoraFormatError(
            f"{path}: not a safetensors file, or a damaged one"
            f" ({type(error).__name__}: {str(error)[:80]}); fetch it again"
        ) from error
    return Header(metadata, content, length)


def _is_name(key: object) -> bool:
    """Keys are quoted in messages: one that could steer a terminal is refused."""
    return isinstance(key, str) and key.isprintable() and 0 < len(key) <= 512


class TensorFile:
    """A safetensors file, opened for reading tensors one at a time; they stay memory-mapped on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        try:
            self._file: Any = safe_open(str(path), framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise LoraFormatError(
                f"{path}: not a sound safetensors file ({error}); fetch it again"
            ) from error

    def get(self, key: str) -> Tensor:
        """The tensor of one key, as stored. Raises LoraFormatError for a dtype that torch lacks."""
        try:
            tensor: Tensor = self._file.get_tensor(key)
        except SafetensorError as error:
            raise LoraFormatError(
                f"{self.path}: '{key}' cannot be read ({error}); save it as bf16, or fetch it again"
            ) from error
        return tensor


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The student's tensors of the released code's `model.pt`: its "generator", or the file itself if flat.

    The restricted reader of torch (weights_only) is used: a file that wants to run code is refused. So is
    every file where that reader has known holes (CVE-2025-32434, CVE-2026-24747).
    """
    if not path.is_file():
        raise LoraFormatError(f"{path}: no such file; check the path")
    if torch.__version__ < "2.10":  # compared as versions, not as texts
        raise LoraFormatError(
            f"{path}: torch {torch.__version__} reads such files unsafely; update it to 2.10 or newer, or ask"
            " for a .safetensors"
        )
    try:
        # mapped where the container allows it, so that the critic beside the generator is never read
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise LoraFormatError(
            f"{path}: refused: the file holds more than tensors, and loading it could run code; ask for a"
            " .safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise LoraFormatError(
            f"{path}: damaged or no PyTorch checkpoint ({str(error)[:80]}); fetch it again"
        ) from error
    tensors = content.get("generator", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise LoraFormatError(
            f"{path}: holds no 'generator' with LoRA tensors; expected the released code's model.pt"
        )
    for key, value in tensors.items():
        if not _is_name(key) or not isinstance(value, Tensor):
            raise LoraFormatError(f"{path}: {key!a} is not a tensor; expected the released code's model.pt")
    return tensors


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically; values and dtypes are kept bit for bit, on any device."""
    with atomic_write(path) as temporary:
        save_tensors(temporary, tensors, metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file at `path` itself (for use under `atomic_write`)."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.clone() if storage in seen else tensor  # safetensors refuses shared storage
        seen.add(storage)
    save_file(plain, str(path), metadata={"format": "pt", **metadata})
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Put the header's notes in order: safetensors shuffles them; equal contents should be equal files."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        content = json.loads(file.read(length))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # longer only if the library wrote shorter JSON than Python
            file.seek(8)
            file.write(text.ljust(length))
