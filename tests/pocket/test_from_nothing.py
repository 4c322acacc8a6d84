"""All weights from nothing: every step is a command as it is, in order, and none is taken twice."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from collectionlora import cli
from collectionlora.pocket.effects import EFFECTS
from collectionlora.pocket.train import __main__ as everything
from collectionlora.training.run_config import read_run

RUNS = everything.RUNS


class Parsed(Exception):
    pass


ALL = list(everything.steps(Path("made"), 0.01, bfloat16=True, compiled=True))


@pytest.mark.parametrize("step", ALL, ids=lambda step: step.name)
def test_every_step_is_a_command_line_that_is_understood(step, monkeypatch):
    understood = argparse.ArgumentParser.parse_args

    def parse(parser, *given):
        understood(parser, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", ["command", *step.arguments])
    command = cli if step.module == "collectionlora" else importlib.import_module(step.module)
    with pytest.raises(Parsed):
        command.main()


def test_a_step_that_failed_is_taken_again_and_those_before_it_are_not(tmp_path, monkeypatch):
    taken, failing = [], ["base"]

    def run(command, check):
        name = command[2].rsplit(".", 1)[-1]
        taken.append(name)
        for step in everything.steps(tmp_path):
            for made, _ in step.makes if step.module == command[2] else ():
                made.parent.mkdir(exist_ok=True)
                made.write_bytes(name.encode())
        return subprocess.CompletedProcess(command, int(name in failing))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="base ended with 1; the same command goes on"):
        everything.main()
    assert taken == ["pool", "autoencoder", "text", "base"]
    assert not list((tmp_path / "weights").iterdir())
    failing.clear()
    everything.main()
    assert taken[4:] == ["base", "teachers", "judge", "few_step", *["collectionlora"] * 2]
    assert (tmp_path / "weights" / "transformer.safetensors").read_bytes() == b"base"
    assert (tmp_path / "weights" / "collection.safetensors").read_bytes() == b"collectionlora"
    everything.main()
    assert len(taken) == 10


def test_the_run_file_means_what_was_made_there_and_what_ships(tmp_path):
    (tmp_path / "weights" / "teachers").mkdir(parents=True)
    for name in EFFECTS:
        (tmp_path / "weights" / "teachers" / f"{name}.safetensors").touch()
    everything.write_runs(tmp_path, 0.01)
    run, shipped = (read_run(folder / "collection.toml") for folder in (tmp_path, everything.FOLDER))
    assert Path(run.base) == tmp_path / "weights"
    assert run.output == tmp_path / "collection"
    assert {Path(one.lora_path).parent for one in run.lists.effects.values()} == {
        tmp_path / "weights" / "teachers"
    }
    assert run.lists.samples == shipped.lists.samples
    assert run.distill.rank == shipped.distill.rank
    assert run.distill.imitation_cycles == shipped.distill.imitation_cycles / 100
    assert run.distill.cycles == shipped.distill.cycles / 100
    assert run.distill.warm_cycles == shipped.distill.warm_cycles == 0  # none stay none
    for share in (0.001, 0.0001):
        everything.write_runs(tmp_path, share)
        few = read_run(tmp_path / "collection.toml").distill
        assert few.cycles == few.start_cycles >= 1


def test_the_few_step_lora_learns_alone_in_the_collection_made_before(tmp_path):
    (tmp_path / "weights" / "teachers").mkdir(parents=True)
    for name in EFFECTS:
        (tmp_path / "weights" / "teachers" / f"{name}.safetensors").touch()
    everything.write_runs(tmp_path, 0.01)
    first, second, shipped = (
        read_run(folder / f"{name}.toml")
        for folder, name in ((tmp_path, RUNS[0]), (tmp_path, RUNS[1]), (everything.FOLDER, RUNS[1]))
    )
    assert second.extend == first.collection
    assert second.output != first.output
    assert second.base == first.base
    assert second.distill == replace(shipped.distill, cycles=shipped.distill.cycles // 100)
    assert shipped.distill.few_step_alone
    assert shipped.extend is not None
    assert shipped.extend.resolve() == read_run(everything.FOLDER / "collection.toml").collection.resolve()
