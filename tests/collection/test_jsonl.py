"""The released code's lists: read as they are, errors name file, line, field and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collectionlora.collection.errors import CollectionError
from collectionlora.collection.jsonl import (
    EffectEntry,
    EffectSample,
    GeneralSample,
    read_effect_data,
    read_effects,
    read_general_data,
)


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def effect(tmp_path) -> dict[str, str]:
    touch(tmp_path / "frost.safetensors")
    return {"lora_name": "frost", "lora_path": "frost.safetensors", "prompt": "turn it to ice"}


@pytest.fixture
def sample(tmp_path) -> dict[str, str]:
    touch(tmp_path / "img" / "cat.png", tmp_path / "img" / "y.png")
    return {
        "source_image": "img/cat.png",
        "instruction": "do it",
        "lora_name": "frost",
        "base_pred_image": "img/y.png",
    }


def effects_error(path: Path) -> str:
    with pytest.raises(CollectionError) as caught:
        read_effects(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert ";" in message  # a remedy follows
    return message.removeprefix(str(path))


def test_the_effects_list_is_read(tmp_path, effect):
    full = {
        **effect,
        "lora_name": "霜 Frost",
        "data_type": "animal",
        "recaption_prompt": "a frozen\nsubject",
        "recaption_prompt_with_trigword": "<t> a frozen subject",
        "something_else": [1],
    }
    path = lines(tmp_path / "effects.jsonl", effect, "", full, "")
    teacher = tmp_path / "frost.safetensors"
    assert read_effects(path) == [
        EffectEntry("frost", teacher, "turn it to ice", "", "", ""),
        EffectEntry(
            "霜 Frost", teacher, "turn it to ice", "animal", "a frozen\nsubject", "<t> a frozen subject"
        ),
    ]


def test_effect_and_general_data_are_read(tmp_path, sample):
    bare = {key: sample[key] for key in ("source_image", "instruction", "lora_name")}
    cat, y = tmp_path / "img" / "cat.png", tmp_path / "img" / "y.png"
    assert read_effect_data(lines(tmp_path / "d.jsonl", sample, bare), ["frost"]) == [
        EffectSample(cat, "do it", "frost", y),
        EffectSample(cat, "do it", "frost", None),
    ]
    assert read_general_data(lines(tmp_path / "g.jsonl", bare)) == [GeneralSample(cat, "do it")]


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path, effect):
    path = tmp_path / "effects.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(effect).encode() + b"\r\n\r\n")
    assert len(read_effects(path)) == 1


class TestPaths:
    """Where paths may lead."""

    def test_relative_ones_start_at_the_lists_folder(self, tmp_path, effect, monkeypatch):
        monkeypatch.chdir("/")
        assert (
            read_effects(lines(tmp_path / "effects.jsonl", effect))[0].lora_path
            == tmp_path / "frost.safetensors"
        )

    def test_relative_ones_may_start_at_a_root_as_in_the_released_lists(self, tmp_path):
        (tmp_path / "ckpt" / "data" / "manga" / "models").mkdir(parents=True)
        row = {"lora_name": "manga", "lora_path": "ckpt/data/manga/models", "prompt": "p"}
        path = lines(tmp_path / "ckpt" / "data" / "manga" / "data" / "lora_type.jsonl", row)
        assert read_effects(path, root=tmp_path)[0].lora_path == tmp_path / "ckpt/data/manga/models"

    def test_absolute_ones_may_lead_anywhere(self, tmp_path, effect):
        effect["lora_path"] = str(tmp_path / "frost.safetensors")
        path = lines(tmp_path / "deep" / "effects.jsonl", effect)
        assert read_effects(path)[0].lora_path == tmp_path / "frost.safetensors"

    def test_absolute_ones_are_taken_as_their_place_is_checked(self, tmp_path, effect):
        (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
        (tmp_path / "elsewhere" / "frost.safetensors").touch()
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep", target_is_directory=True)
        path = lines(tmp_path / "l.jsonl", {**effect, "lora_path": f"{tmp_path}/link/../frost.safetensors"})
        assert read_effects(path)[0].lora_path == tmp_path / "frost.safetensors"

    @pytest.mark.parametrize("escape", ["../frost.safetensors", "a/../../frost.safetensors", "..", "./../x"])
    def test_relative_ones_do_not_leave_the_folder(self, escape, tmp_path, effect):
        path = lines(tmp_path / "deep" / "effects.jsonl", {**effect, "lora_path": escape})
        message = effects_error(path)
        assert message.startswith(":1: lora_path: ")
        assert "leaves the folder" in message
        assert "use an absolute path" in message

    def test_dots_inside_the_folder_are_fine(self, tmp_path, effect):
        path = lines(tmp_path / "effects.jsonl", {**effect, "lora_path": "a/../frost.safetensors"})
        assert read_effects(path)[0].lora_path == tmp_path / "frost.safetensors"

    @pytest.mark.parametrize("value", ["gone.safetensors", "a\x00b", "x" * 5000, "\x1b[2J"])
    def test_that_lead_nowhere_are_said(self, value, tmp_path, effect):
        path = lines(tmp_path / "effects.jsonl", effect, {**effect, "lora_name": "b", "lora_path": value})
        assert effects_error(path).startswith(":2: lora_path: ")

    def test_a_missing_teacher_is_named(self, tmp_path, effect):
        message = effects_error(
            lines(tmp_path / "effects.jsonl", {**effect, "lora_path": "gone.safetensors"})
        )
        assert "gone.safetensors" in message
        assert "no teacher there" in message

    def test_a_missing_picture_is_named(self, tmp_path, sample):
        path = lines(tmp_path / "d.jsonl", sample, {**sample, "base_pred_image": "img/gone.png"})
        with pytest.raises(CollectionError, match=r"d\.jsonl:2: base_pred_image: .*gone\.png'; no such file"):
            read_effect_data(path, ["frost"])


class TestFields:
    """Each field is checked."""

    @pytest.mark.parametrize("field", ["lora_name", "lora_path", "prompt"])
    @pytest.mark.parametrize(
        ("value", "what"),
        [(None, "missing"), ("", "is empty"), ("  ", "is empty"), (5, "is a int"), ([], "is a list")],
    )
    def test_needed_ones_are_there(self, value, what, field, tmp_path, effect):
        message = effects_error(lines(tmp_path / "effects.jsonl", {**effect, field: value}))
        assert message.startswith(f":1: {field}: {what}")

    def test_optional_ones_are_text(self, tmp_path, effect):
        message = effects_error(lines(tmp_path / "effects.jsonl", {**effect, "data_type": 5}))
        assert message.startswith(":1: data_type: is a int, not text")

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("promt", "prompt"),
            ("lora_pth", "lora_path"),
            ("recaption_promt_with_trigword", "recaption_prompt_with_trigword"),
        ],
    )
    def test_misspelt_ones_are_recognised(self, wrong, right, tmp_path, effect):
        row = {key: value for key, value in effect.items() if key != right} | {wrong: "text"}
        message = effects_error(lines(tmp_path / "effects.jsonl", row))
        assert f"{right}: missing, but there is '{wrong}'; rename it to '{right}'" in message

    def test_duplicate_names_show_both_lines(self, tmp_path, effect):
        message = effects_error(
            lines(tmp_path / "effects.jsonl", effect, {**effect, "lora_name": "b"}, effect)
        )
        assert message.startswith(":3: lora_name: 'frost' is in line 1 already")

    def test_an_effect_that_is_not_listed_suggests_the_nearest(self, tmp_path, sample):
        path = lines(tmp_path / "d.jsonl", {**sample, "lora_name": "forst"})
        with pytest.raises(
            CollectionError, match=r"d\.jsonl:1: lora_name: 'forst' .*; did you mean 'frost'\?"
        ):
            read_effect_data(path, ["frost", "neon"])
        with pytest.raises(CollectionError, match="add it to the effects list"):
            read_effect_data(path, ["neon"])


class TestFile:
    """The file itself is checked."""

    @pytest.mark.parametrize(
        "line", ["{", "5", "[]", '"x"', "nul", "[" * 200_000, '{"a": 1} {"b": 2}', "\x00"]
    )
    def test_lines_are_json_objects(self, line, tmp_path, effect):
        assert effects_error(lines(tmp_path / "effects.jsonl", effect, line)).startswith(":2: not ")

    def test_text_is_utf8(self, tmp_path):
        path = tmp_path / "effects.jsonl"
        path.write_bytes(b'{"lora_name": "\xff"}')
        assert effects_error(path).startswith(":1: not valid JSON")

    def test_lines_are_not_endless(self, tmp_path):
        path = tmp_path / "effects.jsonl"
        path.write_bytes(b" " * (2**20 + 1))
        assert effects_error(path).startswith(":1: longer than")

    def test_it_is_not_empty_nor_missing(self, tmp_path):
        assert "empty" in effects_error(lines(tmp_path / "effects.jsonl", "", ""))
        assert "cannot be read" in effects_error(tmp_path / "gone.jsonl")
        assert "cannot be read" in effects_error(tmp_path)
