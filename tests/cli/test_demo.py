"""The demo and `evaluate` on random weights, with few steps: files, report and own picture, not quality."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collectionlora import cli
from collectionlora.collection.file import read_catalogue
from collectionlora.pocket import FEW_STEP, demo, general, rows
from collectionlora.pocket.effects import EFFECTS
from collectionlora.pocket.merges import MERGES
from collectionlora.training import teacher_images
from collectionlora.training.run_config import read_run
from collectionlora.training.sampling import sample_teachers

ROWS = {
    "truth@ae",
    "source",
    "teacher@40x2",
    "teacher@8",
    "stacked@8",
    "collection@8",
    "fresh@8",
    "fresh_untrained@8",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, shipped: Path) -> Iterator[None]:
    """Two effects to distil, six in all, two pictures, and no more than two steps where 40 are asked for."""

    def short(*given: Any, visit: object = None) -> Any:  # so few steps pass too few states for a way
        *start, steps, guidance = given[:10]
        return sample_teachers(*start, min(steps, 2), guidance, *given[10:])

    every = dict(EFFECTS)
    for name in set(EFFECTS) - {path.stem for path in (shipped / "teachers").iterdir()}:
        del EFFECTS[name]
    for module in (rows, general, teacher_images):
        monkeypatch.setattr(module, "sample_teachers", short)
    for name, value in {
        "FRESH": ("thermal", "snowfall"),
        "LEARNT_FROM": 1,
        "GENERAL": 2,
        "JUDGED": 2,
    }.items():
        monkeypatch.setattr(demo, name, value)
    yield
    EFFECTS.clear()
    EFFECTS.update(every)  # in their order, which monkeypatch would not keep


@pytest.mark.usefixtures("quick")
def test_the_demo_distils_judges_and_draws_the_users_own_picture(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.jpg")
    out = tmp_path / "demo"
    command = ["demo", "--base", str(shipped), "--cycles", "2", "--out", str(out)]
    assert cli.main([*command, "--image", str(tmp_path / "mine.jpg")]) == cli.OK
    captured = capsys.readouterr()
    report = json.loads((out / "report.json").read_text())
    assert report["effects"] == list(EFFECTS)
    assert report["images"] == 2
    assert 0 <= report["judge_accuracy"]["mean"] <= 1
    assert set(report["rows"]) >= ROWS
    for row in ROWS:
        assert set(report["rows"][row]) >= {"bad_case", "bleeding", "distance", "subject"}
    assert set(report["by_effect"]["fresh@8"]) == {"thermal", "snowfall"}
    assert report["fresh"]["cycles"] == 2
    assert report["fresh"]["losses"]["fm"]["loss"]
    for name in ("grid.png", "sheet.png", "losses.png", "confusion.png", "yours.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
        assert str(out / name) in captured.out
    assert "| fresh_untrained@8 |" in captured.out
    assert "cycles: 100%" in captured.err
    assert len(read_catalogue(out / "fresh" / "collection.safetensors").effects) == 2


@pytest.mark.usefixtures("quick")
def test_the_demo_can_be_run_again_and_gone_on_with(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    path = demo.write_project(out / "fresh", shipped, 2)
    assert read_run(path).distill.warm_cycles == 1
    assert cli.main(["distill", str(path)]) == cli.OK
    assert cli.main(["distill", str(path), "--resume", "--cycles", "3"]) == cli.OK
    assert read_catalogue(out / "fresh" / "collection.safetensors").training["cycles"] == 3


def test_a_wrong_picture_stops_the_demo_before_it_starts(shipped: Path, tmp_path: Path, fails: Any) -> None:
    command = ["demo", "--base", str(shipped), "--out", str(tmp_path / "demo")]
    assert "none.jpg" in fails(cli.BAD_INPUT, *command, "--image", str(tmp_path / "none.jpg"))
    assert not (tmp_path / "demo").exists()


@pytest.mark.usefixtures("quick")
def test_evaluate_prints_the_table_and_writes_the_report(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(shipped, weights, symlinks=True)
    shutil.copy(shipped / "teachers" / "neon.safetensors", weights / FEW_STEP.name)
    command = ["evaluate", "--base", str(weights), "--images", "2", "--out", str(tmp_path)]
    command += ["--beside", f"the same={shipped / 'collection.safetensors'}"]
    assert cli.main(command) == cli.OK
    assert "| collection@8  " in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 2
    assert {f"{how}@8" for how in MERGES} <= set(report["rows"])
    assert report["rows"]["the same@8"] == report["rows"]["collection@8"]
    assert {"teacher + few-step@8", "the same + few-step@8"} <= set(report["rows"])
    assert report["rows"]["the same + few-step@8"] != report["rows"]["collection@8"]
    general = {"base@8", "collection@8", "collection@4", "base + few-step@8", "base + few-step@4"}
    assert set(report["general"]["ratio"]) == general


def test_evaluate_says_what_is_wrong(
    shipped: Path, tmp_path: Path, fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--base", str(shipped), "--out", str(tmp_path)]
    assert "999 pictures an effect: must be from 2 to 40" in fails(cli.BAD_INPUT, *command, "--images", "999")
    assert "none.safetensors" in fails(cli.BAD_INPUT, *command, str(tmp_path / "none.safetensors"))
    named = fails(cli.BAD_INPUT, *command, "--beside", f"svd={shipped / 'collection.safetensors'}")
    assert "a row of that name" in named
    with pytest.raises(SystemExit):
        cli.main([*command, "--beside", "none.safetensors"])
    assert "is not NAME=FILE" in capsys.readouterr().err


def test_the_fresh_student_learns_effects_of_the_pocket_of_which_some_are_drawn_at_random() -> None:
    assert set(demo.FRESH) <= set(EFFECTS)
    assert any(EFFECTS[name].kind == "one-to-many" for name in demo.FRESH)
