"""The released code's lists, one JSON object a line: effects, effect data, general data.

Errors read `file:line: field: what is wrong; remedy`. Relative paths mean "from the folder of the list" (or
from `root`, as in the released lists) and may not leave it; absolute ones may: teachers often live elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .errors import CollectionError

_LINE_LIMIT = 2**20
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class EffectEntry:
    """One line of the effects list."""

    lora_name: str
    lora_path: Path
    """the teacher: a .safetensors file or a folder; it exists."""
    prompt: str
    """the teacher prompt: what this LoRA was trained with."""
    data_type: str
    """kind of pictures the effect is for (animal, portrait, ...), "" where not given."""
    recaption_prompt: str
    """caption of the edit, "" where not given."""
    recaption_prompt_with_trigword: str
    """tag and caption: the student prompt, "" where not given."""
    tag: str = ""
    """tag of that student prompt where it is not its first word."""

    @property
    def own_words(self) -> tuple[str, str]:
        """Tag and caption that the list itself gives, "" where it gives none."""
        first, *rest = self.recaption_prompt_with_trigword.split(maxsplit=1) or [""]
        return self.tag or first, "".join(rest) if first else self.recaption_prompt


@dataclass(frozen=True)
class EffectSample:
    """One line of the effect data."""

    source_image: Path
    instruction: str
    """what the teacher is asked for with this source: its prompt."""
    lora_name: str
    base_pred_image: Path | None
    """a teacher's output for this source, None where not made yet."""


@dataclass(frozen=True)
class GeneralSample:
    """One line of the general data: an edit without a target."""

    source_image: Path
    instruction: str


def read_effects(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> list[EffectEntry]:
    """Read the effects list. Raises CollectionError, also for duplicate names and missing teachers."""
    lines: dict[str, int] = {}

    def make(row: _Row) -> EffectEntry:
        name = row.text("lora_name")
        if name in lines:
            row.refuse(
                "lora_name",
                f"'{_short(name)}' is in line {lines[name]} already",
                "give every effect its own name",
            )
        lines[name] = row.line
        return EffectEntry(
            lora_name=name,
            lora_path=row.file(
                "lora_path", "no teacher there: put the LoRA file or folder there, or correct the path"
            ),
            prompt=row.text("prompt"),
            data_type=row.text("data_type", optional=True),
            recaption_prompt=row.text("recaption_prompt", optional=True),
            recaption_prompt_with_trigword=row.text("recaption_prompt_with_trigword", optional=True),
        )

    return _read(path, root, tuple(EffectEntry.__dataclass_fields__), make)


def read_effect_data(
    path: str | os.PathLike[str], effects: Collection[str], root: str | os.PathLike[str] | None = None
) -> list[EffectSample]:
    """Read the effect data; every `lora_name` must be one of `effects`. Raises CollectionError."""

    def make(row: _Row) -> EffectSample:
        name = row.text("lora_name")
        if name not in effects:
            near = get_close_matches(name, effects, 1)
            hint = f"did you mean '{near[0]}'?" if near else "add it to the effects list"
            row.refuse("lora_name", f"'{_short(name)}' is not in the effects list", hint)
        return EffectSample(
            source_image=row.file("source_image"),
            instruction=row.text("instruction"),
            lora_name=name,
            base_pred_image=row.file("base_pred_image") if row.has("base_pred_image") else None,
        )

    return _read(path, root, tuple(EffectSample.__dataclass_fields__), make)


def read_general_data(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> list[GeneralSample]:
    """Read the general data. Raises CollectionError."""

    def make(row: _Row) -> GeneralSample:
        return GeneralSample(row.file("source_image"), row.text("instruction"))

    return _read(path, root, tuple(GeneralSample.__dataclass_fields__), make)


class _Row:
    """One parsed line; its methods check a field or raise."""

    def __init__(
        self, path: Path, line: int, root: Path, content: Mapping[str, Any], known: tuple[str, ...]
    ) -> None:
        self.path, self.line, self.root, self.content, self.known = path, line, root, content, known

    def refuse(self, name: str, what: str, remedy: str) -> NoReturn:
        raise CollectionError(f"{self.path}:{self.line}: {name}: {what}; {remedy}")

    def has(self, name: str) -> bool:
        return self.content.get(name) not in (None, "")

    def text(self, name: str, *, optional: bool = False) -> str:
        value = self.content.get(name)
        if value is None:
            self._check_misspelt(name)
            if optional:
                return ""
            self.refuse(name, "missing", "add it")
        if not isinstance(value, str):
            self.refuse(name, f"is a {type(value).__name__}, not text", "put it in quotes")
        if not optional and not value.strip():
            self.refuse(name, "is empty", "give it a text")
        return value

    def file(self, name: str, missing: str = "no such file: put it there, or correct the path") -> Path:
        value = self.text(name)
        if "\0" in value:
            self.refuse(name, "holds a zero byte", "correct the path")
        if Path(value).is_absolute():
            found = Path(os.path.normpath(value))  # as its place is checked, whatever links it leads over
        else:
            inside = os.path.normpath(value)
            if inside == ".." or inside.startswith(".." + os.sep):
                self.refuse(
                    name, f"'{_short(value)}' leaves the folder {self.root}", "use an absolute path instead"
                )
            found = self.root / inside
        try:
            exists = found.exists()
        except (OSError, ValueError) as error:
            self.refuse(name, f"'{_short(value)}' is no usable path ({error})", "correct the path")
        if not exists:
            self.refuse(name, f"'{_short(str(found))}'", missing)
        return found

    def _check_misspelt(self, name: str) -> None:
        unknown = [key for key in self.content if key not in self.known]
        if near := get_close_matches(name, unknown, 1, 0.75):
            self.refuse(name, f"missing, but there is '{_short(near[0])}'", f"rename it to '{name}'")


def _read(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None,
    known: tuple[str, ...],
    make: Callable[[_Row], _Item],
) -> list[_Item]:
    file = Path(path)
    base = file.parent if root is None else Path(root)
    items = []
    try:
        with file.open("rb") as stream:
            for line, raw in enumerate(iter(lambda: stream.readline(_LINE_LIMIT + 1), b""), 1):
                content = _parse_line(file, line, raw)
                if content is not None:
                    items.append(make(_Row(file, line, base, content, known)))
    except OSError as error:
        raise CollectionError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    if not items:
        raise CollectionError(f"{file}: the list is empty; give one JSON object a line")
    return items


def _parse_line(file: Path, line: int, raw: bytes) -> Mapping[str, Any] | None:
    """The object of one line, None for a blank one."""
    if len(raw) > _LINE_LIMIT:
        raise CollectionError(f"{file}:{line}: longer than {_LINE_LIMIT} bytes; give one JSON object a line")
    try:
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        content = json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise CollectionError(
            f"{file}:{line}: not valid JSON ({error}); give one JSON object a line"
        ) from error
    if content is not None and not isinstance(content, dict):
        raise CollectionError(f'{file}:{line}: not a JSON object; write {{"field": "value", ...}}')
    return content


def _short(text: str) -> str:
    """A text for an error message: control characters escaped, not too long."""
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return plain if len(plain) <= 100 else plain[:97] + "..."
