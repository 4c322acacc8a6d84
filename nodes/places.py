"""Where nodes may read: ComfyUI's own folders and what the user has added to them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import folder_paths

from ..collection.catalogue import slug
from ..pocket import WEIGHTS
from .files import BUILT_IN

KIND = "collectionlora"
"""Folders of this kind in extra_model_paths.yaml may be read too."""

_POCKET = WEIGHTS.parent


def roots() -> list[Path]:
    """All folders below which paths may lie."""
    named = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.models_dir]
    for kind in ("loras", KIND):
        if kind in folder_paths.folder_names_and_paths:
            named += folder_paths.get_folder_paths(kind)
    return [Path(name).resolve() for name in named]


def folder_name(name: str) -> str:
    """A run's folder: `My Collection!` -> `my_collection`, other scripts' letters as they are."""
    words = re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", name).lower()).strip("_")[:64]
    return words or slug(name)


def unused(path: Path, between: str = " ", taken: Callable[[Path], bool] = Path.exists) -> Path:
    """`path`, or the first of `path 2`, `path 3`, ... that is not `taken`, with a space `between` or that."""
    number, free = 2, path
    while taken(free):
        free = path.with_name(f"{path.stem}{between}{number}{path.suffix}")
        number += 1
    return free


def new_file(name: str) -> tuple[Path, str]:
    """Where a collection of that name is written, and what ComfyUI will call it: below the first folder of
    LoRAs, under a name that hides no file of another one. Raises ValueError as `inside`."""
    root = Path(folder_paths.get_folder_paths("loras")[0])

    def taken(path: Path) -> bool:
        return path.exists() or folder_paths.get_full_path("loras", str(path.relative_to(root))) is not None

    path = unused(inside(root, name), taken=taken)
    return path, str(path.relative_to(root))


def inside(root: Path, name: str) -> Path:
    """The .safetensors file of that name below `root`.

    Raises ValueError for a name that leads out of the folder or that a file system may not take.
    """
    name = name.strip().removesuffix(".safetensors")
    parts = re.split(r"[/\\]", name)
    if not name or any(
        not re.fullmatch(r"[^<>:\"|?*\x00-\x1f]*[^<>:\"|?*\x00-\x1f. ]", part) for part in parts
    ):
        raise ValueError(f"filename {name!r}: give a name below models/loras, such as collections/my effects")
    return root.joinpath(*parts[:-1], parts[-1] + ".safetensors")


def check_places(said: Mapping[str, Path]) -> None:
    """Raises ValueError for the first path outside the folders that may be read, quoting what the user said.
    What lies in one of them may be a link to elsewhere."""
    places = roots()
    readable = (*places, _POCKET, _POCKET.resolve())
    for words, path in said.items():
        plain = Path(os.path.abspath(path))  # noqa: PTH100 - a link is not followed
        if any(plain.is_relative_to(root) for root in readable):
            continue
        path = path.resolve()  # one that is said by another name of its folder
        if not any(path.is_relative_to(root) for root in readable):
            raise ValueError(
                f"{words} lies outside the folders that may be read ({', '.join(map(str, places))}); move it "
                f"there, or name its folder under {KIND} in extra_model_paths.yaml"
            )


def allowed(text: str, built_in: str) -> Path:
    """A file or folder that exists; if relative, below the first of `roots` that has it. `built_in` is a file
    of the pocket.

    Raises ValueError for a path outside the allowed folders, or that is not there.
    """
    text = text.strip().strip('"')
    if text == BUILT_IN:
        return _POCKET / built_in
    if not text:
        raise ValueError(
            "the path is empty; give a folder or a .jsonl list, by its name below ComfyUI's input or models "
            "folder"
        )
    tried = [root / Path(text).expanduser() for root in roots()]
    path = Path(os.path.abspath(next((one for one in tried if one.exists()), tried[0])))  # noqa: PTH100
    check_places({text: path})
    if not path.exists():
        raise ValueError(
            f"{text}: no such file or folder below ComfyUI's input, output or models folder; check the path"
        )
    return path
