"""The catalogue in a collection file's header: effects, sampler sigmas, base fingerprint, training summary.

Strangers write this text, so everything is checked whenever a `Catalogue` is made: one that exists is valid.
Texts are plain text; a page that shows them must not treat them as markup.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, NoReturn

from .errors import CollectionError
from .names import block_index, is_qwen_image_module
from .thumbnails import check_thumbnail

VERSION = 1
"""Version of the catalogue written, and the newest one read."""

HEADER_KEY = "collectionlora"
"""Key of the catalogue in the safetensors metadata."""

_NAME = re.compile(r"[a-z0-9_]{1,64}")
_LIMITS = {"title": 120, "tag": 64, "prompt": 4000, "category": 64}
_TEXT_LIMIT = 20_000
_DEPTH_LIMIT = 8
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_EFFECT_KEYS = ("name", "title", "tag", "prompt", "category", "thumbnail")
_CATALOGUE_KEYS = ("version", "effects", "sigmas", "base", "training")


@dataclass(frozen=True)
class Effect:
    """One effect of a collection. Raises CollectionError when a field is not what it should be."""

    name: str
    """identifier, [a-z0-9_]+, unique in the collection."""
    title: str
    """what people read."""
    tag: str
    """the unique orthogonal token (paper, asymmetric orthogonal prompting)."""
    prompt: str
    """the student prompt: what is given to the model to get this effect."""
    category: str = ""
    thumbnail: bytes | None = None
    """a small PNG, WebP or JPEG file: source and result side by side, or the result alone."""
    extra: dict[str, Any] = field(default_factory=dict)
    """entries of the header that this version does not know; written back as they were."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            _refuse(f"effect name {_show(self.name)}", "use 1 to 64 of a-z, 0-9 and _")
        for name, limit in _LIMITS.items():
            where = f"effect '{self.name}': {name}"
            # a caption may have several lines; a title or tag may not
            _check_text(getattr(self, name), where, limit, lines=name == "prompt", empty=name == "category")
        if self.thumbnail is not None:
            check_thumbnail(self.thumbnail, f"effect '{self.name}': thumbnail")
        _check_extra(self.extra, _EFFECT_KEYS, f"effect '{self.name}'")


@dataclass(frozen=True)
class Catalogue:
    """Everything a collection says of itself. Raises CollectionError when it is not consistent."""

    effects: tuple[Effect, ...]
    sigmas: tuple[float, ...]
    """sampler sigmas of the student, strictly decreasing from 1 to 0; their number less one is the NFE."""
    base: dict[str, Any]
    """fingerprint of the base, see `fingerprint`."""
    training: dict[str, Any] = field(default_factory=dict)
    """summary of the training: plain JSON values."""
    version: int = VERSION
    extra: dict[str, Any] = field(default_factory=dict)
    """entries of the header that this version does not know; written back as they were."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "effects", tuple(self.effects))
        object.__setattr__(self, "sigmas", check_sigmas(self.sigmas))
        if self.version != VERSION:
            _refuse(f"catalogue version {_show(self.version)}", f"this program writes version {VERSION}")
        if not self.effects:
            _refuse("a catalogue without effects", "list at least one")
        for attribute in ("name", "tag"):
            _check_unique(self.effects, attribute)
        _check_extra(self.extra, _CATALOGUE_KEYS, "catalogue")
        for name in ("base", "training"):
            if not isinstance(getattr(self, name), dict):
                _refuse(f"{name} is not a map", "give a map of names to values")
            _check_json(getattr(self, name), name)
        for name in ("architecture", "hash"):
            if not isinstance(self.base.get(name), str):
                _refuse(f"base has no text '{name}'", "build it with fingerprint()")

    def __getitem__(self, name: str) -> Effect:
        """The effect of that name; CollectionError with the nearest names when there is none."""
        for effect in self.effects:
            if effect.name == name:
                return effect
        names = [effect.name for effect in self.effects]
        near = get_close_matches(name, names, 3) or names[:3]
        raise CollectionError(f"no effect {_show(name)} in this collection; did you mean {', '.join(near)}?")

    def fits(self, shapes: Mapping[str, tuple[int, int]]) -> bool:
        """Whether the collection was trained on a base with these Linears (module path -> (out, in))."""
        return bool(self.base["hash"] == fingerprint(shapes)["hash"])

    @property
    def long_side(self) -> int:
        """Pixels of the longer side of what it was trained on; 1024, as most are, where it does not say."""
        said = self.training.get("long_side")
        return said if type(said) is int and 64 <= said <= 4096 else 1024

    def to_header(self) -> dict[str, str]:
        """The safetensors metadata: one entry with the catalogue as JSON, thumbnails in base64."""
        effects = []
        for effect in self.effects:
            entry = {name: getattr(effect, name) for name in _EFFECT_KEYS}
            if effect.thumbnail is not None:
                entry["thumbnail"] = base64.b64encode(effect.thumbnail).decode("ascii")
            effects.append({key: value for key, value in entry.items() if value is not None} | effect.extra)
        content = {
            "version": self.version,
            "effects": effects,
            "sigmas": list(self.sigmas),
            "base": self.base,
            "training": self.training,
        } | self.extra
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return {"format": "pt", HEADER_KEY: text}

    @classmethod
    def from_header(cls, metadata: Mapping[str, str], source: str = "header") -> Catalogue:
        """Read the catalogue from safetensors metadata. `source` names the file in errors.

        Raises CollectionError: no catalogue, written by a newer version, or any field that is not valid.
        """
        text = metadata.get(HEADER_KEY)
        if text is None:
            raise CollectionError(f"{source}: no catalogue in it: this is a plain LoRA, not a collection")
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CollectionError(
                f"{source}: the catalogue is not valid JSON ({error}); fetch it again"
            ) from error
        try:
            return _parse(content)
        except CollectionError as error:
            raise CollectionError(f"{source}: {error}") from error


def fingerprint(shapes: Mapping[str, tuple[int, int]], name: str | None = None) -> dict[str, Any]:
    """What identifies a base: a hash of its Linears' sorted names and shapes, and words for people.

    shapes: module path -> (out, in) of *all* Linears of the transformer. The hash tells architectures and
    sizes apart, not two trainings of the same one: that is what `name` is for.
    """
    if not shapes:
        raise CollectionError("a base without Linears has no fingerprint")
    lines = "".join(f"{path} {out}x{inn}\n" for path, (out, inn) in sorted(shapes.items()))
    blocks = {index for path in shapes if (index := block_index(path)) is not None}
    known = all(is_qwen_image_module(path) for path in shapes)
    result: dict[str, Any] = {
        "architecture": "qwen_image" if known else "unknown",
        "hash": "sha256:" + hashlib.sha256(lines.encode()).hexdigest(),
        "modules": len(shapes),
        "blocks": len(blocks),
    }
    return result if name is None else result | {"name": name}


def slug(text: str) -> str:
    """An effect name from any text, stable: `Manga Tone!` -> `manga_tone`. A hash stands for letters of other
    scripts: `effect_e4c5f1ba`, `v1_0f3a5d21`."""
    text, plain = composed(text), unicodedata.normalize("NFKD", text)
    words = re.sub(r"[^a-z0-9]+", "_", plain.encode("ascii", "ignore").decode().lower()).strip("_")
    if words and not any(letter.isalnum() and not letter.isascii() for letter in plain):
        return words[:64]
    return f"{words[:55] or 'effect'}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def composed(name: str) -> str:
    """A name as people type it: a Mac's folders hold its letters and their accents apart."""
    return unicodedata.normalize("NFC", name)


def check_sigmas(sigmas: Iterable[float]) -> tuple[float, ...]:
    """Return sampler sigmas as a tuple. Raises CollectionError unless they fall strictly from 1 to 0."""
    values = tuple(sigmas) if isinstance(sigmas, (list, tuple)) else None
    if values is None or not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        _refuse(f"sigmas {_show(values)} are not a list of numbers in [0, 1]", "give them from 1 to 0")
    if len(values) < 2 or values[0] != 1 or values[-1] != 0:
        _refuse(f"sigmas {_show(values)} do not go from 1 to 0", "begin with 1 and end with 0")
    for before, after in pairwise(values):
        if after >= before:
            _refuse(f"sigmas are not strictly decreasing: {before} is followed by {after}", "sort them")
    return tuple(float(value) for value in values)


def _parse(content: Any) -> Catalogue:
    if not isinstance(content, dict):
        _refuse("the catalogue is not a map", "fetch the file again")
    version = content.get("version")
    if type(version) is not int or version < 1:
        _refuse(f"catalogue version {_show(version)}", "fetch the file again")
    if version > VERSION:
        _refuse(
            f"written by a newer version ({version}, this program reads up to {VERSION})",
            "update collectionlora",
        )
    for name in ("effects", "sigmas", "base"):
        if name not in content:
            _refuse(f"the catalogue has no '{name}'", "fetch the file again")
    if not isinstance(content["effects"], list):
        _refuse("'effects' is not a list", "fetch the file again")
    return Catalogue(
        effects=tuple(_parse_effect(entry, number) for number, entry in enumerate(content["effects"], 1)),
        sigmas=content["sigmas"],
        base=content["base"],
        training=content.get("training", {}),
        version=version,
        extra={key: value for key, value in content.items() if key not in _CATALOGUE_KEYS},
    )


def _parse_effect(entry: Any, number: int) -> Effect:
    if not isinstance(entry, dict):
        _refuse(f"effect {number} is not a map", "fetch the file again")
    for name in ("name", "title", "tag", "prompt"):
        if name not in entry:
            _refuse(f"effect {number} has no '{name}'", "fetch the file again")
    thumbnail = entry.get("thumbnail")
    if thumbnail is not None:
        try:
            thumbnail = base64.b64decode(thumbnail, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise CollectionError(
                f"effect {number}: thumbnail is not base64 ({error}); fetch it again"
            ) from error
    return Effect(
        name=entry["name"],
        title=entry["title"],
        tag=entry["tag"],
        prompt=entry["prompt"],
        category=entry.get("category", ""),
        thumbnail=thumbnail,
        extra={key: value for key, value in entry.items() if key not in _EFFECT_KEYS},
    )


def _check_unique(effects: tuple[Effect, ...], attribute: str) -> None:
    seen: dict[str, int] = {}
    for number, effect in enumerate(effects, 1):
        if not isinstance(effect, Effect):
            _refuse(f"effect {number} is not an Effect", "build it with Effect(...)")
        value = getattr(effect, attribute)
        if value in seen:
            _refuse(
                f"effects {seen[value]} and {number} have the same {attribute} {_show(value)}", "rename one"
            )
        seen[value] = number


def _check_text(value: Any, where: str, limit: int, *, lines: bool = False, empty: bool = False) -> None:
    if not isinstance(value, str):
        _refuse(f"{where} is not text", "give text")
    if not empty and not value.strip():
        _refuse(f"{where} is empty", "give it a text")
    if len(value) > limit:
        _refuse(f"{where} has {len(value)} characters, more than {limit}", "shorten it")
    for char in value:
        control = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _BIDI
        if control and not (lines and char == "\n"):
            _refuse(f"{where} holds the control character U+{ord(char):04X}", "use plain text")


def _check_extra(extra: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(extra, dict) or any(key in known for key in extra):
        _refuse(f"{where}: extra entries clash with its own fields", "rename them")
    _check_json(extra, where)


def _check_json(value: Any, where: str, depth: int = 0) -> None:
    """Only what JSON can hold, with plain texts, and not too deep to show."""
    if depth > _DEPTH_LIMIT:
        _refuse(f"{where} is nested more than {_DEPTH_LIMIT} deep", "flatten it")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_text(key, f"a key of {where}", 200)
            _check_json(entry, f"{where}.{key}" if len(where) < 200 else where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_json(entry, where, depth + 1)
    elif isinstance(value, str):
        _check_text(value, where, _TEXT_LIMIT, lines=True, empty=True)
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse(f"{where} is {value}", "give a finite number")
    elif value is not None and not isinstance(value, (bool, int, float)):
        _refuse(f"{where} is a {type(value).__name__}", "use texts, numbers, lists and maps")


def _show(value: Any) -> str:
    """A value for an error message: quoted, escaped, short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _refuse(what: str, remedy: str) -> NoReturn:
    raise CollectionError(f"{what}; {remedy}")
