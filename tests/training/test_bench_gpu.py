"""The GPU bench, tiny and on a CPU: FLOPs are those that are done, rows complete, failures passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("diffusers")

from collectionlora.bench import gpu
from collectionlora.bench.flops import Work
from collectionlora.bench.gpu import WAYS, Settings, Way
from collectionlora.bench.random_qwen import Size, random_lessons, random_transformer, write_teachers
from collectionlora.training.hosts.fused import fuse
from collectionlora.training.lora import PAPER_TARGETS, LoraAdapter, target_shapes
from collectionlora.training.planning.architecture import Architecture, Operations
from collectionlora.training.roles import Roles

SHORT = {"num_attention_heads": 1, "joint_attention_dim": 32}
TINY = Settings(
    Size(Architecture(num_layers=3, **SHORT), pixels=32, text=16, rank=4), "cpu", repeats=1, peak_tflops=1.0
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_teachers(TINY.size, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_counted_flops_are_those_that_torch_counts(checkpointing: str) -> None:
    size = Size(Architecture(num_layers=6, **SHORT), pixels=128, text=8, rank=4)
    net, _ = random_transformer(size, CPU)
    fuse(net, checkpointing)
    velocity = gpu._Velocity(net, CPU)
    sample = random_lessons(size, CPU).effects["one"][0]
    given = sample.source[None], torch.full((1,), 0.7), sample.student[None], sample.source[None]
    student = LoraAdapter.create(target_shapes(net, PAPER_TARGETS), size.rank, 4.0, 1)
    with Roles(net, {"student": student}) as roles, roles.use("student"), sdpa_kernel(SDPBackend.MATH):
        work = Work.of(size.architecture, size.tokens)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            velocity(*given)
        assert counter.get_total_flops() == work.forward(size.rank)
        with FlopCounterMode(display=False) as counter:
            velocity(*given).sum().backward()
    expected = work.forward(size.rank) + work.backward(size.rank)
    again = work.again(size.rank, checkpointing) - work.model.scores  # products compute none twice
    assert counter.get_total_flops() == pytest.approx(expected + again, rel=0.03)


def test_what_is_kept_is_not_computed_again() -> None:
    work = Work(Operations(linears=1000.0, attention=100.0), adapter=1.0)
    assert work.forward(10) == 1110
    assert work.backward(10) == 1220
    assert [work.again(10, policy) for policy in ("none", "selective", "full")] == [50, 1060, 1160]


@pytest.mark.parametrize(
    "name", ["bf16", "bf16, half offloaded", "fp8, offloaded, selective", "fp8, 4 at a time"]
)
def test_a_way_is_measured(files: dict[str, Path], name: str) -> None:
    row = gpu.attempt(WAYS[name], TINY, files)
    assert "error" not in row
    for key in ("peak_gib", "cycle_seconds", "forward_seconds", "both_seconds", "cycle_model_flops"):
        assert row[key] > 0
    assert row["cycle_hardware_flops"] > row["cycle_model_flops"]
    if "offload" in name:
        assert row["gradient_error"] <= 1e-2
        assert 0 <= row["late_blocks_a_cycle"] < 30
    line = gpu.table({name: row}, TINY).splitlines()[-1]
    assert line.startswith(
        f"| {name} | {row['peak_gib']:.2f} ({row['planned_gib']:.2f}) | {row['cycle_seconds']:.2f} |"
    )
    assert ("(0.0e+00)" in line) == ("offload" in name)


def test_gradients_that_differ_are_reported(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    detach = gpu.Offload.detach

    def damage(offload: gpu.Offload) -> None:
        detach(offload)
        for block in offload._chosen:
            block.attn.to_out[0].weight.data *= 1.5  # type: ignore[union-attr, index, operator]

    monkeypatch.setattr(gpu.Offload, "detach", damage)
    row = gpu.attempt(WAYS["bf16, offloaded"], TINY, files)
    assert row["gradient_error"] > 0.05


def test_weights_are_the_same_however_they_are_kept() -> None:
    resident, _ = random_transformer(TINY.size, CPU)
    offloaded, away = random_transformer(TINY.size, CPU, offload=2)
    assert away is not None
    away.detach()
    for (name, one), other in zip(resident.named_parameters(), offloaded.parameters()):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other), name


def test_what_fails_is_recorded_and_the_rest_goes_on(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(gpu, "random_transformer", full)
    assert gpu.attempt(Way(), TINY, files) == {"error": "out of memory"}
    monkeypatch.setattr(gpu, "random_transformer", lambda *_: 1 / 0)
    assert gpu.attempt(Way(), TINY, files)["error"].startswith("failed: ZeroDivisionError")
    line = gpu.table({"bf16": {"error": "out of memory"}}, TINY).splitlines()[-1]
    assert line.startswith("| bf16 | out of memory |")


def test_the_command_runs_each_way_in_its_own_process(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "gpu.json"
    arguments = [
        "--layers",
        "2",
        "--heads",
        "1",
        "--size",
        "32",
        "--text",
        "4",
        "--rank",
        "2",
        "--device",
        "cpu",
    ]
    gpu.main([*arguments, "--repeats", "1", "--profile", "--only", "fp8, half offloaded", "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["card"] == "CPU"
    assert content["settings"]["size"]["architecture"]["num_layers"] == 2
    row = content["rows"]["fp8, half offloaded"]
    assert row["cycle_seconds"] > 0
    assert "addmm" in row["profile"]
    assert "| fp8, half offloaded |" in capsys.readouterr().out
