"""Two processes train what one trains with the same batch; a checkpoint goes on in any number of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from collectionlora.training.workers import Workers

SCRIPT = Path(__file__).with_name("several_workers.py")
CYCLES = 20


def run(teachers: Path, out: Path, count: int, cycles: int = CYCLES, *options: str) -> list[dict[str, Any]]:
    """What each of `count` processes has come to."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(SCRIPT), str(teachers), str(out), str(cycles), *options]
    children = [
        subprocess.Popen(command, env={**os.environ, **torchrun, "RANK": str(rank)}) for rank in range(count)
    ]
    try:
        assert [child.wait(timeout=120) for child in children] == [0] * count
    finally:
        for child in children:
            child.kill()
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(count)]


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    assert one.keys() == other.keys()
    tensors = ((torch.tensor(one[k]).double(), torch.tensor(other[k]).double()) for k in one)
    return max(float((a - b).abs().max()) for a, b in tensors)


@pytest.fixture(scope="module")
def whole(teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process, all cycles."""
    (alone,) = run(teachers, tmp_path_factory.mktemp("alone"), 1)
    return alone


def test_two_processes_do_what_one_does_each_with_half_the_work(
    whole: dict[str, Any], teachers: Path, tmp_path: Path
) -> None:
    first, second = run(teachers, tmp_path, 2)
    assert first["weights"] == second["weights"]
    assert first["losses"] == second["losses"]
    assert distance(first["weights"], whole["weights"]) < 1e-8
    assert distance(first["average"], whole["average"]) < 1e-6  # kept in float32
    for ours, theirs in zip(first["norms"], whole["norms"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10)
    for ours, theirs in zip(first["losses"], whole["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10)
    assert first["evaluations"] + second["evaluations"] == whole["evaluations"]
    assert 0.3 < first["evaluations"] / whole["evaluations"] < 0.7


def test_a_micro_batch_as_large_as_the_batch_leaves_no_process_idle(
    whole: dict[str, Any], teachers: Path, tmp_path: Path
) -> None:
    first, second = run(teachers, tmp_path, 2, CYCLES, "--micro-batch", "6")
    assert distance(first["weights"], whole["weights"]) < 1e-8
    assert 0.3 < first["evaluations"] / (first["evaluations"] + second["evaluations"]) < 0.7


def test_pictures_of_several_sizes_are_shared_too(teachers: Path, tmp_path: Path) -> None:
    options = (CYCLES, "--micro-batch", "3", "--sizes")
    (alone,) = run(teachers, tmp_path / "one", 1, *options)
    several = run(teachers, tmp_path / "two", 2, *options)
    assert distance(several[0]["weights"], alone["weights"]) < 1e-8
    assert sum(one["evaluations"] for one in several) == alone["evaluations"]


def test_a_checkpoint_goes_on_in_another_number_of_processes(
    whole: dict[str, Any], teachers: Path, tmp_path: Path
) -> None:
    run(teachers, tmp_path, 2, CYCLES, "--stop-at", "12")  # on ways that are held
    (after,) = run(teachers, tmp_path, 1)
    assert after["cycle"] == CYCLES
    assert distance(after["weights"], whole["weights"]) < 1e-8


def test_processes_that_share_one_base_do_the_same(
    whole: dict[str, Any], teachers: Path, tmp_path: Path
) -> None:
    """Their rollouts and terms differ: half of the micro-batches are of the general stream."""
    first, second = run(teachers, tmp_path, 2, CYCLES, "--shard")
    assert first["held"] + second["held"] == whole["held"]
    assert min(first["held"], second["held"]) > 0.3 * whole["held"]
    assert first["evaluations"] != second["evaluations"]
    assert first["evaluations"] + second["evaluations"] == whole["evaluations"]
    assert first["weights"] == second["weights"]
    assert distance(first["weights"], whole["weights"]) < 1e-8
    for ours, theirs in zip(first["norms"], whole["norms"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10)


def test_one_that_is_asked_to_stop_stops_all(whole: dict[str, Any], teachers: Path, tmp_path: Path) -> None:
    stopped = run(teachers, tmp_path, 2, CYCLES, "--stop-at", "11")
    assert [(one["cycle"], one["stopped"]) for one in stopped] == [(11, True), (11, True)]
    assert stopped[0]["weights"] == stopped[1]["weights"]
    after = run(teachers, tmp_path, 2)
    assert distance(after[0]["weights"], whole["weights"]) < 1e-8


def test_alone_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Workers.joined() as alone:
        assert alone == Workers()
        assert alone.leads
        assert alone.share([1, 2, 3]) == [1, 2, 3]
        assert alone.gather("x") == ["x"]
        tensor = torch.ones(2)
        alone.add_up([tensor])
        alone.wait()
        with alone.one_goes_first():
            assert torch.equal(tensor, torch.ones(2))
        assert Workers(1, 2).share([1, 2, 3]) == [2]
