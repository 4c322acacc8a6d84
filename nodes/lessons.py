"""What a distillation learns from: teachers, pictures for their effects, and general edits."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..collection.catalogue import composed
from ..collection.jsonl import (
    EffectEntry,
    EffectSample,
    GeneralSample,
    read_effect_data,
    read_effects,
    read_general_data,
)
from ..training.pictures import fitted, read_picture, to_tensor
from ..training.sheets import SheetRow, contact_sheet
from .files import BUILT_IN, lora_changed, with_config
from .places import allowed, check_places
from .sockets import TRAINING, EffectImagesSocket, GeneralImagesSocket, TeachersSocket

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHOWN = 6
EVERYDAY_EDITS = Path(__file__).with_name("everyday_edits.txt")
"""One instruction a line."""


class Teacher(io.ComfyNode):
    """One LoRA as a teacher."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraTeacher",
            display_name="Teacher",
            category=TRAINING,
            description="One effect LoRA of models/loras with the prompt it was trained with.",
            search_aliases=["teacher lora", "effect lora"],
            inputs=[
                io.Combo.Input(
                    "lora", options=folder_paths.get_filename_list("loras"), tooltip="A file of models/loras."
                ),
                io.String.Input("name", default="", tooltip="The effect's name; empty: the file's."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What this LoRA wants to hear: its trigger words, as on its model page.",
                ),
                io.String.Input(
                    "category", default="", tooltip="Where a picker lists the effect, e.g. paint."
                ),
                TeachersSocket.Input("teachers", optional=True, tooltip="Teachers to add this one to."),
            ],
            outputs=[TeachersSocket.Output(display_name="teachers", tooltip="For Distil Collection.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = "", **_: Any) -> Any:
        """Run again when the file has been written anew under its name."""
        return lora_changed(lora)

    @classmethod
    def execute(
        cls,
        lora: str,
        name: str,
        prompt: str,
        category: str,
        teachers: tuple[EffectEntry, ...] = (),
    ) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise("loras", lora))
        name = name.strip() or path.stem
        if not prompt.strip():
            raise ValueError(f"teacher {name!r} has no prompt; write what this LoRA was trained with")
        return io.NodeOutput(
            together([*teachers, EffectEntry(name, path, prompt.strip(), category.strip(), "", "")])
        )


class Teachers(io.ComfyNode):
    """Many LoRAs as teachers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraTeachers",
            display_name="Teachers",
            category=TRAINING,
            description="All effect LoRAs of a folder, or of the paper's effects list.",
            search_aliases=["teachers from folder", "lora folder", "jsonl"],
            inputs=[
                io.String.Input(
                    "source",
                    default=BUILT_IN,
                    tooltip="A folder of .safetensors below ComfyUI's models or input folder, or an "
                    "effects .jsonl.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="For folders, one line an effect: file name without ending: prompt. A text file "
                    "beside a LoRA (name.txt) does as well.",
                ),
                TeachersSocket.Input("teachers", optional=True, tooltip="Teachers to add these to."),
            ],
            outputs=[
                TeachersSocket.Output(
                    display_name="teachers", tooltip="For Effect Images and Distil Collection."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str | None = "", **_: Any) -> Any:
        """Read again when something in the folder has changed."""
        return changed(source, "effects.jsonl")

    @classmethod
    def execute(cls, source: str, prompts: str, teachers: tuple[EffectEntry, ...] = ()) -> io.NodeOutput:
        path = allowed(source, "effects.jsonl")
        if path.is_file():
            found = read_effects(path)
            _check_listed(path, [teacher.lora_path for teacher in found])
        else:
            found = _teachers_of(path, prompts)
        return io.NodeOutput(together([*teachers, *found]))


class EffectImages(io.ComfyNode):
    """The pictures the effects are learnt on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraEffectImages",
            display_name="Effect Images",
            category=TRAINING,
            description="Pictures BEFORE the effect. What comes after it is made by the teachers, unless "
            "you have it.",
            search_aliases=["dataset", "image pairs", "training images"],
            inputs=[
                TeachersSocket.Input("teachers", tooltip="The effects the pictures are for."),
                io.String.Input(
                    "before",
                    default=BUILT_IN,
                    tooltip="Source pictures: a folder (all effects learn on all of them; subfolders "
                    "named like effects are for these alone), or the paper's data .jsonl.",
                ),
                io.String.Input(
                    "after",
                    default="",
                    tooltip="Optional: a folder with a subfolder for each effect that holds its results, "
                    "named like the sources. Those missing are made by the teacher.",
                ),
                io.Int.Input(
                    "for_each",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="At most so many sources an effect; 0: all.",
                ),
            ],
            outputs=[
                EffectImagesSocket.Output(display_name="images", tooltip="For Distil Collection."),
                io.Image.Output(
                    display_name="pairs", tooltip="Some of them, before on the left, after on the right."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, before: str | None = "", after: str | None = "", **_: Any) -> Any:
        """Read again when something in the folders has changed."""
        return changed(before, "data.jsonl"), changed(after, "")

    @classmethod
    def execute(
        cls, teachers: tuple[EffectEntry, ...], before: str, after: str, for_each: int
    ) -> io.NodeOutput:
        names = [teacher.lora_name for teacher in teachers]
        path = allowed(before, "data.jsonl")
        if path.is_file():
            if after.strip():
                raise ValueError("after goes with a folder of sources; lists name results as base_pred_image")
            samples = read_effect_data(path, names)
            _check_listed(path, [one.source_image for one in samples])
            _check_listed(path, [one.base_pred_image for one in samples if one.base_pred_image])
        else:
            results = allowed(after, "") if after.strip() else None
            if results and not any(_own(results, name) for name in names):
                raise ValueError(
                    f"{results} has no subfolder named like an effect, such as {names[0]}; make one"
                )
            samples = [one for teacher in teachers for one in _samples_of(teacher, path, results)]
        if for_each:
            samples = [
                one for name in names for one in [s for s in samples if s.lora_name == name][:for_each]
            ]
        pairs = _pairs(samples)
        return io.NodeOutput(tuple(samples), pairs, ui=ui.PreviewImage(pairs, cls=cls))


class GeneralImages(io.ComfyNode):
    """Edits that keep the student an editor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraGeneralImages",
            display_name="General Images",
            category=TRAINING,
            description="Pictures with everyday instructions: the second stream, which keeps the base's "
            "own skills.",
            search_aliases=["regularisation images", "general stream"],
            inputs=[
                io.String.Input(
                    "pictures",
                    default=BUILT_IN,
                    tooltip="A folder of pictures, or the paper's general .jsonl.",
                ),
                io.String.Input(
                    "instructions",
                    default="",
                    multiline=True,
                    tooltip="For a folder: one instruction a line, the more the better; they go round over "
                    "the pictures. Empty: 290 of every kind.",
                ),
            ],
            outputs=[GeneralImagesSocket.Output(display_name="general", tooltip="For Distil Collection.")],
        )

    @classmethod
    def fingerprint_inputs(cls, pictures: str | None = "", **_: Any) -> Any:
        """Read again when something in the folder has changed."""
        return changed(pictures, "general.jsonl")

    @classmethod
    def execute(cls, pictures: str, instructions: str) -> io.NodeOutput:
        path = allowed(pictures, "general.jsonl")
        if path.is_file():
            general = tuple(read_general_data(path))
            _check_listed(path, [one.source_image for one in general])
            return io.NodeOutput(general)
        lines = _lines(instructions) or _lines(EVERYDAY_EDITS.read_text(encoding="utf-8"))
        found = _pictures_in(path)
        pairs = range(max(len(lines), len(found)))  # every instruction and every picture is used
        return io.NodeOutput(
            tuple(GeneralSample(found[i % len(found)], lines[i % len(lines)]) for i in pairs)
        )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def together(teachers: Sequence[EffectEntry]) -> tuple[EffectEntry, ...]:
    """Raises ValueError when two teachers have one name."""
    seen: dict[str, EffectEntry] = {}
    for teacher in teachers:
        if teacher.lora_name in seen:
            raise ValueError(f"two teachers are called {teacher.lora_name!r}; give one of them another name")
        seen[teacher.lora_name] = teacher
    return tuple(teachers)


def changed(text: str | None, built_in: str) -> Any:
    """Something that differs once the files of a path do; never raises, that is for `execute`. None: of
    a linked input, whose text core knows only later."""
    if text is None:
        return None
    try:
        path = allowed(text, built_in)
        files = [path, *(path.rglob("*") if path.is_dir() else _listed(path))]
    except (ValueError, OSError):
        return text
    times = []
    for file in sorted(files):
        with suppress(OSError):  # a link to nothing
            times.append((str(file), file.stat().st_mtime_ns))
    return times


def _listed(path: Path) -> list[Path]:
    """Files that the lines of a list name, whatever the fields, and those of teachers that are folders; what
    is no list names none."""
    named, teachers = set[Path](), set[Path]()
    for line in path.read_bytes().removeprefix(BOM_UTF8).split(b"\n"):
        with suppress(ValueError, AttributeError, TypeError):
            content = json.loads(line)
            named |= {path.parent / value for value in content.values() if isinstance(value, str)}
            teachers |= {path.parent / content.get("lora_path", "")} & named
    found = []
    for file in named:
        with suppress(OSError, ValueError):  # too long for a name: a prompt
            if file.is_file():
                found += with_config(file) if file in teachers else [file]
            elif file in teachers and file != path.parent and file.is_dir():
                _check_listed(path, [file])  # or a list could have the whole disk looked through
                found += file.rglob("*")
    return found


def _check_listed(path: Path, files: Sequence[Path]) -> None:
    """Raises ValueError for a file of the list `path` that may not be read."""
    check_places({f"{path}: {file}": file for file in files})


def _teachers_of(folder: Path, prompts: str) -> list[EffectEntry]:
    known = {}
    for number, line in enumerate(prompts.splitlines(), 1):
        name, colon, prompt = line.partition(":")
        if line.strip() and not (colon and prompt.strip()):
            raise ValueError(f"prompts, line {number}: {line!r} is not NAME: PROMPT")
        name = composed(name.strip())
        if name and name in known:
            raise ValueError(f"prompts, line {number}: {name} has a prompt already; keep one of them")
        known[name] = prompt.strip()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors file; give the folder of your effect LoRAs")
    teachers = []
    for file in files:
        note, name = file.with_suffix(".txt"), composed(file.stem)
        prompt = known.pop(name, "") or (_text_of(note) if note.is_file() else "")
        if not prompt:
            raise ValueError(
                f"{file.name} has no prompt; add the line {name}: PROMPT, or {note.name} beside it"
            )
        teachers.append(EffectEntry(name, file, prompt, "", "", ""))
    if any(known):
        raise ValueError(f"prompts: {folder} holds no {next(filter(None, known))}.safetensors")
    return teachers


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()  # as Windows writes it, or without the mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from error


def _samples_of(teacher: EffectEntry, before: Path, after: Path | None) -> list[EffectSample]:
    name = teacher.lora_name
    own = _own(before, name) or before
    sources = _pictures_in(own)
    made: dict[str, Path] = {}
    if after is not None and (results := _own(after, name)):
        for file in _pictures_in(results):
            if file.stem in made:
                raise ValueError(f"{file} and {made[file.stem].name} are results of one source; keep one")
            made[file.stem] = file
        stems = Counter(file.stem for file in sources)
        for stem, file in made.items():
            if stems[stem] > 1:
                raise ValueError(f"{file} is of two sources in {own} that have its name; give each its own")
            if stem not in stems:
                raise ValueError(f"{file} has no source of that name in {own}")
    return [EffectSample(source, teacher.prompt, name, made.get(source.stem)) for source in sources]


def _own(folder: Path, name: str) -> Path | None:
    """The folder in `folder` that is called like the effect, in small or capital letters, if there is one."""
    wanted = composed(name)
    alike = [one for one in folder.iterdir() if composed(one.name).casefold() == wanted.casefold()]
    return min(filter(Path.is_dir, alike), key=lambda one: composed(one.name) != wanted, default=None)


def _pictures_in(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"{folder} holds no picture ({', '.join(PICTURES)}); put some there")
    return found


def _pairs(samples: Sequence[EffectSample]) -> Tensor:
    """IMAGE of some pairs, those with a result first."""
    shown = sorted(samples, key=lambda sample: sample.base_pred_image is None)[:SHOWN]

    def square(path: Path | None) -> Tensor | None:
        return None if path is None else fitted(read_picture(path), 256, 8, square=True)

    rows = [SheetRow(one.lora_name, [square(one.source_image), square(one.base_pred_image)]) for one in shown]
    note = f"{len(samples)} pictures; an empty place on the right is filled by the teacher"
    sheet = contact_sheet(rows, ["BEFORE\nthe source", "AFTER\nthe effect"], note=note)
    return to_tensor(sheet).movedim(0, -1)[None]
