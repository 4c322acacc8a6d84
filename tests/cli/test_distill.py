"""`distill`: whatever its end, files and exit code are right and errors are one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from collectionlora import cli, console
from collectionlora.collection.file import load_collection, read_catalogue
from collectionlora.training import speed
from collectionlora.training.hosts.kernels import kernel
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.lora import linear_shapes


def test_distill_writes_a_collection_that_can_be_read_and_sampled(
    pocket: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "bfloat16_slowdown", lambda device: 37.4)
    assert cli.main(["distill", pocket.config, "--bfloat16"]) == cli.OK
    captured = capsys.readouterr()
    assert "37 times slower in bfloat16: leave --bfloat16 out" in captured.out
    path = pocket.folder / "out" / "collection.safetensors"
    assert str(path) in captured.out
    assert "teacher images: 100%" in captured.err
    assert "cycles: 100%" in captured.err
    assert "fm=" in captured.err
    catalogue = read_catalogue(path)
    assert [effect.name for effect in catalogue.effects] == ["frost", "neon"]
    assert not any(effect.thumbnail for effect in catalogue.effects)
    host = PocketHost(Path(pocket.base))
    assert catalogue.fits(linear_shapes(host.transformer))
    load_collection(path, linear_shapes(host.transformer))
    out = pocket.folder / "made.png"
    sample = ["sample", str(path), "--image", str(pocket.folder / "a.png"), "--effect", "neon"]
    assert cli.main([*sample, "--base", pocket.base, "--out", str(out)]) == cli.OK
    assert Image.open(out).size == (128, 128)


def test_distill_compiles_blocks(pocket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            called.append(function.__name__)
            return function(*given)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    kernel.cache_clear()
    assert cli.main(["distill", pocket.config, "--bfloat16", "--compile"]) == cli.OK
    kernel.cache_clear()
    assert set(called) == {"before", "after"}


@pytest.mark.parametrize("base", ["whole", "shared"])
def test_distill_runs_in_two_processes_that_torchrun_starts(base: str, pocket: Any, fails: Any) -> None:
    pocket.change("micro_batch = 2", "micro_batch = 1")
    if base == "shared":
        Path(pocket.config).write_text("shard = true\nthumbnails = true\n" + Path(pocket.config).read_text())
        line = fails(cli.BAD_INPUT, "distill", pocket.config)
        assert "shard = true splits the base over several processes; start them with torchrun" in line
        assert "leave it out" in fails(cli.BAD_INPUT, "distill", pocket.config, "--compile")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "collectionlora", "distill", pocket.config],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 effects after 2 cycles") == 1
    assert read_catalogue(pocket.folder / "out" / "collection.safetensors").training["cycles"] == 2
    if base == "shared":
        made = read_catalogue(pocket.folder / "out" / "collection.safetensors")
        assert all(effect.thumbnail for effect in made.effects)  # by one process, the others keeping pace
        pocket.change("shard = true", "shard = false")
    assert cli.main(["distill", pocket.config, "--resume", "--cycles", "3"]) == cli.OK


def test_distill_resumes_and_takes_the_length_from_the_command_line(pocket: Any, fails: Any) -> None:
    assert cli.main(["distill", pocket.config]) == cli.OK
    line = fails(cli.BAD_INPUT, "distill", pocket.config)
    assert "state.safetensors holds the state of an earlier run; go on with --resume" in line
    assert cli.main(["distill", pocket.config, "--resume", "--cycles", "3"]) == cli.OK
    assert read_catalogue(pocket.folder / "out" / "collection.safetensors").training["cycles"] == 3


def test_another_setting_is_refused_before_teacher_images_are_made(pocket: Any, fails: Any) -> None:
    assert cli.main(["distill", pocket.config]) == cli.OK
    made = {*(pocket.folder / "out" / "teacher_images").iterdir()}
    pocket.change("[distill]", "[distill]\nseed = 3")
    line = fails(cli.BAD_INPUT, "distill", pocket.config, "--resume")
    assert "made with seed = 0 where this run has 3" in line
    assert {*(pocket.folder / "out" / "teacher_images").iterdir()} == made


def test_a_run_that_is_asked_for_in_other_words_leaves_the_earlier_one_alone(pocket: Any, fails: Any) -> None:
    assert cli.main(["distill", pocket.config]) == cli.OK
    files = (pocket.folder / "out").glob("[!t]*.*")  # all but tags.json, which knows what it is of
    made = {path.name: path.read_bytes() for path in files}
    rows = [json.loads(line) for line in (pocket.folder / "effects.jsonl").read_text().splitlines()]
    rows[0]["recaption_prompt"] = "something else"  # what makes student prompts is not known from the start
    (pocket.folder / "effects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = fails(cli.BAD_INPUT, "distill", pocket.config, "--resume", "--cycles", "3")
    assert "effect 'frost' was trained as" in line
    assert "is kept" not in line
    assert {name: (pocket.folder / "out" / name).read_bytes() for name in made} == made


def test_ctrl_c_in_a_cycle_leaves_a_collection_and_says_how_to_go_on(
    pocket: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without thumbnails, which would take long."""
    Path(pocket.config).write_text("thumbnails = true\n" + Path(pocket.config).read_text())
    press_ctrl_c(monkeypatch, lambda phase, done: phase == "cycles" and done == 1)
    line = fails(cli.CANCELLED, "distill", pocket.config)
    assert line.endswith(f"go on with: collectionlora distill {pocket.config} --resume")
    left = read_catalogue(pocket.folder / "out" / "collection.safetensors")
    assert left.training["cycles"] == 1
    assert not any(effect.thumbnail for effect in left.effects)
    monkeypatch.undo()
    assert cli.main(["distill", pocket.config, "--resume"]) == cli.OK
    assert read_catalogue(pocket.folder / "out" / "collection.safetensors").training["cycles"] == 2


def test_a_run_that_breaks_off_leaves_a_collection_and_says_how_to_go_on(
    pocket: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = console.Console.progress

    def full(self: console.Console, phase: str, done: int, total: int) -> None:
        progress(self, phase, done, total)
        if phase == "cycles" and done == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(console.Console, "progress", full)
    line = fails(cli.BAD_INPUT, "distill", pocket.config)
    assert "out of memory; `collectionlora plan" in line
    assert line.endswith(f"is kept, go on with: collectionlora distill {pocket.config} --resume")
    assert read_catalogue(pocket.folder / "out" / "collection.safetensors").training["cycles"] == 1
    monkeypatch.undo()
    assert cli.main(["distill", pocket.config, "--resume"]) == cli.OK


def test_ctrl_c_among_teacher_images_keeps_those_made(
    pocket: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pocket.change("guidance = 0.0", "guidance = 0.0\nbatch = 1")
    press_ctrl_c(monkeypatch, lambda phase, done: phase == "teacher images" and done == 1)
    line = fails(cli.CANCELLED, "distill", pocket.config, "--bfloat16", "--cycles", "2")
    assert line.endswith(f"go on with: collectionlora distill {pocket.config} --cycles 2 --bfloat16")
    assert len(list((pocket.folder / "out" / "teacher_images").iterdir())) == 1
    monkeypatch.undo()
    assert cli.main(["distill", pocket.config]) == cli.OK


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch, when: Callable[[str, int], bool]) -> None:
    """Interrupt this process when the progress says so."""
    progress = console.Console.progress

    def pressing(self: console.Console, phase: str, done: int, total: int) -> None:
        progress(self, phase, done, total)
        if when(phase, done):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(console.Console, "progress", pressing)


def test_a_request_to_end_is_a_question_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    it = console.Console()
    with it.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert it.cancelled()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_stops_at_once_and_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    it = console.Console()
    with it.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert it.cancelled()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_an_earlier_run_did_does_not_count_as_speed_of_this_one() -> None:
    with console.Console() as it:
        it.progress("cycles", 900, 1000)
        it.progress("cycles", 901, 1000)
        shown = it._bar.format_dict
        assert (shown["initial"], shown["n"]) == (900, 901)


def test_a_keyboard_interrupt_anywhere_else_exits_with_130(
    collection: Path, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_inspect", press)
    assert fails(cli.CANCELLED, "inspect", str(collection)) == "collectionlora: cancelled"


def test_a_diverging_run_exits_with_3_and_keeps_what_it_has(
    pocket: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pocket.change("cycles = 2\n", "cycles = 9\n")
    velocity, good = PocketHost.velocity, [True]

    def broken(self: PocketHost, *inputs: Any) -> Any:
        return velocity(self, *inputs) * (1 if good[0] else torch.nan)

    progress = console.Console.progress

    def breaking(self: console.Console, phase: str, done: int, total: int) -> None:
        progress(self, phase, done, total)
        good[0] = phase != "cycles"

    monkeypatch.setattr(PocketHost, "velocity", broken)
    monkeypatch.setattr(console.Console, "progress", breaking)
    assert "not finite in 3 cycles in a row" in fails(cli.DIVERGED, "distill", pocket.config)
    assert read_catalogue(pocket.folder / "out" / "collection.safetensors").training["cycles"] >= 1


def unknown_key(pocket: Any) -> None:
    pocket.change("rank = 2", "rnak = 2")


def missing_list(pocket: Any) -> None:
    (pocket.folder / "data.jsonl").unlink()


def missing_base(pocket: Any) -> None:
    pocket.change('base = "base"', 'base = "elsewhere"')


def wrong_base(pocket: Any) -> None:
    (pocket.folder / "other").mkdir()
    save_file({"foreign.weight": torch.zeros(2)}, pocket.folder / "other" / "transformer.safetensors")
    pocket.change('base = "base"', 'base = "other"')


def cut_base(pocket: Any) -> None:
    wrong_base(pocket)
    (pocket.folder / "other" / "transformer.safetensors").write_bytes(b"\x00" * 7)


def long_prompt(pocket: Any) -> None:
    path = pocket.folder / "effects.jsonl"
    path.write_text(path.read_text().replace('"prompt": "neon"', f'"prompt": "{"neon " * 60}"'))


def empty_picture(pocket: Any) -> None:
    (pocket.folder / "a.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (unknown_key, ["config.toml", "unknown key rnak", "did you mean 'rank'"]),
        (missing_list, ["data.jsonl", "cannot be read", "check the path"]),
        (missing_base, ["elsewhere", "holds neither", "model_index.json"]),
        (wrong_base, ["other/transformer.safetensors", "not the pocket base's"]),
        (cut_base, ["other/transformer.safetensors", "damaged"]),
        (long_prompt, ["prompt of 3", "takes 192", "shorten it"]),
        (empty_picture, ["a.png"]),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    pocket: Any, fails: Any, damage: Callable[[Any], None], words: list[str]
) -> None:
    damage(pocket)
    line = fails(cli.BAD_INPUT, "distill", pocket.config)
    for word in words:
        assert word in line


def test_anything_unexpected_exits_with_1_and_debug_shows_where(
    pocket: Any, capsys: pytest.CaptureFixture[str], fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise AssertionError("a mistake of ours")

    monkeypatch.setattr(cli, "_distill", broken)
    line = fails(cli.UNEXPECTED, "distill", pocket.config)
    assert "unexpected AssertionError: a mistake of ours; run again with --debug" in line
    assert cli.main(["distill", "--debug", pocket.config]) == cli.UNEXPECTED
    assert "Traceback" in capsys.readouterr().err


def test_distill_extends_a_finished_collection(pocket: Any, collection: Path, capsys: Any) -> None:
    config = Path(pocket.config)
    config.write_text(f'extend = "{collection}"\n{config.read_text()}')
    assert cli.main(["plan", pocket.config, "--gpu", "16"]) == cli.OK
    assert "rank 2" in capsys.readouterr().out
    assert cli.main(["distill", pocket.config]) == cli.OK
    made, known = (
        read_catalogue(path) for path in (pocket.folder / "out/collection.safetensors", collection)
    )
    assert [(one.tag, one.prompt) for one in made.effects] == [(one.tag, one.prompt) for one in known.effects]


def test_a_full_card_is_told_what_to_do(pocket: Any, fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(cli, "_host", full)
    line = fails(cli.BAD_INPUT, "distill", pocket.config)
    assert "out of memory; `collectionlora plan CONFIG.toml --gpu GB` names settings that fit" in line
