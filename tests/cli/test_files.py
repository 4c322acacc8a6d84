"""`sample`, `inspect`, `convert`, and the command as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from collectionlora import cli


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "collectionlora", *arguments], capture_output=True, text=True, cwd=sys.prefix
    )


def test_help_names_every_command_and_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom collectionlora.cli import main\nmain(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=sys.prefix)
    assert done.returncode == 0, done.stderr
    for command in ("distill", "plan", "sample", "evaluate", "inspect", "convert", "demo"):
        assert command in done.stdout


def test_the_module_runs_as_a_command_and_usage_errors_exit_with_2() -> None:
    done = run_python("distil")
    assert done.returncode == 2
    assert "invalid choice: 'distil'" in done.stderr
    assert run_python().returncode == 2


def sampled(pocket: Any, collection: Path, out: str, **options: str) -> Path:
    path = pocket.folder / out
    arguments = ["sample", str(collection), "--image", str(pocket.folder / "a.png"), "--base", pocket.base]
    options = {"effect": "neon", **options}
    assert cli.main([*arguments, *flags(options), "--out", str(path)]) == cli.OK
    return path


def flags(options: Mapping[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def test_a_sample_is_fixed_by_its_seed(pocket: Any, collection: Path) -> None:
    first = sampled(pocket, collection, "1.png").read_bytes()
    assert sampled(pocket, collection, "2.png").read_bytes() == first
    assert sampled(pocket, collection, "3.png", seed="1").read_bytes() != first
    assert sampled(pocket, collection, "4.png", steps="1").read_bytes() != first


def test_two_effects_are_composed_in_one_prompt(
    pocket: Any, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled(pocket, collection, "both.webp", then="frost")
    assert "<neon_1> do neon, then <frost_1> do frost (2 evaluations)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effect": "nein"}, ["no effect 'nein'", "did you mean neon"]),
        ({"effect": "neon", "then": "forst"}, ["no effect 'forst'", "did you mean frost"]),
        ({"effect": "neon", "steps": "0"}, ["steps must be at least 1, not 0"]),
        ({"effect": "neon", "size": "9"}, ["--size = 9 must be a whole number"]),
        ({"effect": "neon", "image": "none.png"}, ["none.png"]),
        ({"effect": "neon", "out": "made.txt"}, ["made.txt", ".png, .webp or .jpg"]),
    ],
)
def test_a_wrong_sample_is_explained(
    pocket: Any,
    collection: Path,
    fails: Any,
    options: dict[str, str],
    words: list[str],
) -> None:
    given = {"image": str(pocket.folder / "a.png"), "out": str(pocket.folder / "x.png"), "base": pocket.base}
    line = fails(cli.BAD_INPUT, "sample", str(collection), *flags({**given, **options}))
    for word in words:
        assert word in line


def test_a_plain_lora_is_no_collection_to_sample(pocket: Any, weights: Path, fails: Any) -> None:
    options = {"image": str(pocket.folder / "a.png"), "effect": "neon", "out": str(pocket.folder / "x.png")}
    line = fails(cli.BAD_INPUT, "sample", str(weights / "neon.safetensors"), *flags(options))
    assert "this is a plain LoRA, not a collection" in line


def test_inspect_lists_effects_for_people_and_programs(
    collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(collection)]) == cli.OK
    assert "2 effects at 2 steps" in capsys.readouterr().out
    assert cli.main(["inspect", str(collection), "--json"]) == cli.OK
    content = json.loads(capsys.readouterr().out)
    assert [effect["name"] for effect in content["catalogue"]["effects"]] == ["frost", "neon"]


def test_convert_writes_another_layout(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kohya.safetensors"
    assert cli.main(["convert", str(collection), str(out), "--layout", "kohya"]) == cli.OK
    assert cli.main(["inspect", str(out)]) == cli.OK
    assert "in kohya layout" in capsys.readouterr().out
    with pytest.raises(SystemExit) as usage:
        cli.main(["convert", str(collection), str(out), "--layout", "other"])
    assert usage.value.code == cli.BAD_INPUT


@pytest.mark.parametrize("command", [["inspect"], ["convert", "--layout", "peft"]])
def test_a_file_that_is_not_there_is_named(command: list[str], tmp_path: Path, fails: Any) -> None:
    name, *options = command
    files = [str(tmp_path / "none.safetensors"), *([str(tmp_path / "out")] if name == "convert" else [])]
    assert "none.safetensors" in fails(cli.BAD_INPUT, name, *files, *options)
