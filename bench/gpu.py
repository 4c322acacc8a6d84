"""The training step of the full-size model on one GPU: memory, time and utilisation of every way to hold it.

`python -m collectionlora.bench.gpu` builds Qwen-Image-Edit's transformer with random weights for each
configuration in a process of its own, runs the product's own distiller and trainer on it, and prints a table;
`--out` gets all of it as JSON. What does not fit is recorded and passed over. `--layers 2 --size 128
--text 32 --device cpu` runs anywhere. docs/gpu_bench.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..collection.atomic import write_text
from ..training.bank import TeacherBank
from ..training.config import Distillation, OptimizerName, distillation
from ..training.data import together
from ..training.distiller import FAKE, STUDENT, Distiller
from ..training.host import Texts
from ..training.hosts.diffusers import EditVelocity
from ..training.hosts.fused import fuse
from ..training.hosts.ragged import padded
from ..training.lora import PAPER_TARGETS, LoraAdapter, linear_shapes, target_shapes
from ..training.memory import peak_memory
from ..training.offload import Offload
from ..training.planning.architecture import Architecture
from ..training.planning.cards import card_named
from ..training.planning.footprint import GIB, Job, Setting, Storage, device_bytes
from ..training.planning.plan import hours, model_operations
from ..training.roles import BASE, Roles
from ..training.run_config import Checkpointing
from ..training.trainer import Trainer
from .flops import Metered, Work
from .random_qwen import TEACHER_RANK, TEACHERS, Size, random_lessons, random_transformer, write_teachers

PEAK_TFLOPS = 989.0
"""Dense bfloat16 of an H100 SXM (NVIDIA's data sheet)."""


@dataclass(frozen=True)
class Way:
    """One way to hold and run the model."""

    base_dtype: str = "bf16"
    checkpointing: Checkpointing = "full"
    offload: str = "none"
    """"none", "half" or "all" of the blocks."""
    optimizer: OptimizerName = "adamw"
    fused: bool = True
    compiled: bool = False
    """Whole blocks; else what lies between their matrix products."""
    batch: int = 1
    """Samples of a cycle, which all go through the model at a time; their prompts have two lengths."""

    def waiting(self, layers: int) -> int:
        """How many of so many blocks wait in host memory."""
        return {"none": 0, "half": layers // 2, "all": layers}[self.offload]


WAYS = {
    "bf16": Way(),
    "bf16, diffusers' blocks": Way(fused=False),
    "bf16, compiled": Way(compiled=True),
    "bf16, selective": Way(checkpointing="selective"),
    "bf16, no checkpointing": Way(checkpointing="none"),
    "bf16, no checkpointing, compiled": Way(checkpointing="none", compiled=True),
    "bf16, 2 at a time": Way(batch=2),
    "bf16, 8 at a time": Way(batch=8),
    "bf16, adamw8bit": Way(optimizer="adamw8bit"),
    "bf16, half offloaded": Way(offload="half"),
    "bf16, offloaded": Way(offload="all"),
    "fp8": Way("fp8"),
    "fp8, compiled": Way("fp8", compiled=True),
    "fp8, selective": Way("fp8", "selective"),
    "fp8, no checkpointing": Way("fp8", "none"),
    "fp8, 4 at a time": Way("fp8", batch=4),
    "fp8, selective, 4 at a time": Way("fp8", "selective", batch=4),
    "fp8, adamw8bit": Way("fp8", optimizer="adamw8bit"),
    "fp8, half offloaded": Way("fp8", offload="half"),
    "fp8, offloaded": Way("fp8", offload="all"),
    "fp8, offloaded, selective": Way("fp8", "selective", "all"),
    "fp8, offloaded, adamw8bit": Way("fp8", "full", "all", "adamw8bit"),
}


@dataclass(frozen=True)
class Settings:
    """What all ways have in common."""

    size: Size = field(default_factory=Size)
    device: str = "cuda"
    cycles: int = 1
    """Timed, after the single forwards and backwards."""
    repeats: int = 3
    """Timed single forwards and backwards, after one that is not."""
    peak_tflops: float | None = None
    """What utilisation is of; None: not said."""
    profile: bool = False


def attempt(way: Way, settings: Settings, teachers: dict[str, Path]) -> dict[str, Any]:
    """`measure`, or {"error": why not}: one way that fails must not cost the others."""
    try:
        return measure(way, settings, teachers)
    except Exception as error:
        text = " ".join(str(error).split())
        if _out_of_memory(error):
            return {"error": "out of memory"}
        if way.optimizer == "adamw8bit" and "bitsandbytes" in text:
            return {"error": "needs bitsandbytes"}
        traceback.print_exc()
        return {"error": f"failed: {type(error).__name__}: {text[:200]}"}


def _out_of_memory(error: Exception) -> bool:
    """On the device in any of its words, or in the host."""
    words = ("out of memory", "alloc_failed", "allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def measure(way: Way, settings: Settings, teachers: dict[str, Path]) -> dict[str, Any]:
    """Run one way in this process; times in seconds, memory in GiB, FLOPs a timed cycle."""
    size, device = settings.size, torch.device(settings.device)
    offload = way.waiting(size.architecture.num_layers)
    transformer, away = random_transformer(size, device, way.base_dtype, offload)
    if way.fused:
        fuse(transformer, way.checkpointing, way.compiled)
    else:
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    shapes = target_shapes(transformer, PAPER_TARGETS)
    adapters = {
        role: LoraAdapter.create(shapes, size.rank, size.rank, seed).to(device)
        for seed, role in enumerate((STUDENT, FAKE))
    }
    lessons = random_lessons(size, device)
    samples = [lessons.effects[TEACHERS[i % len(TEACHERS)]][0] for i in range(way.batch)]
    source, words = torch.stack([one.source for one in samples]), together([one.student for one in samples])
    given = (source.flip(1), torch.full((way.batch,), 0.7), words, source)
    velocity = _Velocity(transformer, device)
    with Roles(transformer, adapters) as roles, roles.use(STUDENT):
        work = Work.of(size.architecture, size.tokens)
        ranks = {STUDENT: size.rank, FAKE: size.rank, "teachers": TEACHER_RANK, BASE: 0}
        metered = Metered(velocity, roles, work, ranks, way.checkpointing)
        bank = TeacherBank(teachers, linear_shapes(transformer), device, torch.bfloat16)
        distill = configured(way, settings)
        trainer = Trainer(Distiller(metered, roles, bank, distill.objective), lessons, distill)

        def forward() -> None:
            with torch.no_grad():
                velocity(*given)

        def both() -> None:
            roles.guard(velocity(*given)).square().mean().backward()

        result: dict[str, Any] = {
            "forward_seconds": _seconds(forward, settings),
            "both_seconds": _seconds(both, settings),
        }
        metered.model = metered.hardware = late = 0.0
        if away is not None:
            late = away.late
        start = time.perf_counter()
        parts = [record.seconds for record in trainer.run()]
        result |= {
            "cycle_seconds": (time.perf_counter() - start) / settings.cycles,
            "parts_seconds": {part: sum(own[part] for own in parts) / settings.cycles for part in parts[0]},
            "peak_gib": peak_memory(device) / GIB,
            "cycle_model_flops": metered.model / settings.cycles,
            "cycle_hardware_flops": metered.hardware / settings.cycles,
            "forward_model_flops": way.batch * work.forward(size.rank),
            "both_model_flops": way.batch * (work.forward(size.rank) + work.backward(size.rank)),
        }
        result |= planned(way, settings, result["cycle_model_flops"])
        if device.type == "cuda":
            result["reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
        if settings.profile:
            result["profile"] = _profile(both, device)
        if away is not None:
            result["late_blocks_a_cycle"] = (away.late - late) / settings.cycles
            result |= gradient_errors(adapters[STUDENT], both, transformer, away)
    return result


def configured(way: Way, settings: Settings) -> Distillation:
    """A micro-batch a cycle, in the effect stream."""
    rank = settings.size.rank
    config = {"cycles": settings.cycles, "p_effect": 1.0, "optimizer": way.optimizer}
    batch = {"batch": way.batch, "micro_batch": way.batch}
    return distillation(config | batch | {"rank": rank})


def planned(way: Way, settings: Settings, operations: float) -> dict[str, float]:
    """What `collectionlora plan` says of such a cycle: its peak, and its seconds on a card that it knows.

    Rollouts stop at random: the seconds are those of the operations that the timed cycles took.
    """
    size, layers = settings.size, settings.size.architecture.num_layers
    job = Job(
        configured(way, settings),
        size.architecture,
        side=size.pixels,
        effects=len(TEACHERS),
        samples=len(TEACHERS),
        teacher_rank=TEACHER_RANK,
        text=size.text,
    )
    waiting = way.waiting(layers)
    blocks = layers - waiting + min(2, waiting) if waiting else None
    storage = Storage(way.base_dtype, weight=1 if way.base_dtype == "fp8" else 2, blocks=blocks)
    setting = Setting(storage, way.optimizer, way.batch, checkpointing=way.checkpointing)
    phases = {
        name: sum(p.values()) for name, p in device_bytes(job, setting).items() if name != "teacher images"
    }
    found = {"planned_gib": max(phases.values()) / GIB}
    cuda = settings.device.startswith("cuda")
    card = card_named(torch.cuda.get_device_name(settings.device)) if cuda else None
    if card is not None:
        found["planned_seconds"] = hours(job, setting, card).cycle * operations / model_operations(job)
    return found


def gradient_errors(
    adapter: LoraAdapter, both: Callable[[], None], transformer: nn.Module, away: Offload
) -> dict[str, Any]:
    """|offloaded - resident| / |resident| of the adapter's gradients, and of two resident runs beside it,
    which differ where a kernel adds up in no fixed order. Brings the blocks back."""

    def gradients() -> Tensor:
        adapter.zero_grad()
        both()
        return torch.cat([p.grad.flatten().cpu() for p in adapter.parameters() if p.grad is not None])

    offloaded = gradients()
    away.detach()
    try:
        transformer.to(away.device)
        resident, again = gradients(), gradients()
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        return {"gradient_error": None}
    norm = resident.norm()
    return {
        "gradient_error": float((offloaded - resident).norm() / norm),
        "gradient_noise": float((again - resident).norm() / norm),
    }


class _Velocity:
    """As the host of the full-size model casts."""

    def __init__(self, transformer: nn.Module, device: torch.device) -> None:
        self.inner, self.device = EditVelocity(transformer), device

    def __call__(self, x: Tensor, sigma: Tensor, text: Texts, source: Tensor) -> Tensor:
        words, lengths = padded(text)
        given = (tensor.to(self.device, torch.bfloat16) for tensor in (x, sigma, words, source))
        output: Tensor = self.inner(*given, lengths)
        return output.float()


def _seconds(action: Callable[[], None], settings: Settings) -> float:
    wait = torch.cuda.synchronize if settings.device.startswith("cuda") else lambda: None
    action()
    wait()
    start = time.perf_counter()
    for _ in range(settings.repeats):
        action()
    wait()
    return (time.perf_counter() - start) / settings.repeats


def _profile(action: Callable[[], None], device: torch.device) -> str:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    table: str = profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=25)
    return table


def table(rows: dict[str, dict[str, Any]], settings: Settings) -> str:
    """One line a way."""
    heads = [
        "peak GiB (plan)",
        "s a cycle (plan)",
        "forward ms",
        "forward + backward ms",
        "model %",
        "hardware %",
        "gradient error (noise)",
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 1)]
    for name, row in rows.items():
        if "error" in row:
            cells = [row["error"], *[""] * (len(heads) - 1)]
        else:
            cells = [f"{row['peak_gib']:.2f} ({row['planned_gib']:.2f})", f"{row['cycle_seconds']:.2f}"]
            if "planned_seconds" in row:
                cells[-1] += f" ({row['planned_seconds']:.2f})"
            cells += [f"{1000 * row[key]:.0f}" for key in ("forward_seconds", "both_seconds")]
            for key in ("cycle_model_flops", "cycle_hardware_flops"):
                cells.append(_percent(row[key] / row["cycle_seconds"], settings.peak_tflops))
            cells.append(_errors(row))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _errors(row: dict[str, Any]) -> str:
    if "gradient_error" not in row:
        return ""
    error = row["gradient_error"]
    return "resident does not fit" if error is None else f"{error:.1e} ({row['gradient_noise']:.1e})"


def _percent(rate: float, peak_tflops: float | None) -> str:
    return "" if peak_tflops is None else f"{rate / peak_tflops / 1e12:.1%}".rstrip("%")


def bench(names: Sequence[str], settings: Settings, out: Path) -> dict[str, dict[str, Any]]:
    """Measure ways one after the other, each in a process of its own, and keep `out` up to date."""
    rows: dict[str, dict[str, Any]] = {}
    cuda = settings.device.startswith("cuda")
    about = {
        "card": torch.cuda.get_device_name(settings.device) if cuda else "CPU",
        "torch": torch.__version__,
        "settings": asdict(settings),
    }
    with TemporaryDirectory() as folder:
        teachers = write_teachers(settings.size, Path(folder))
        for name in names:
            try:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    rows[name] = pool.submit(attempt, WAYS[name], settings, teachers).result()
            except BrokenProcessPool:  # the system kills what takes all of the host's memory
                rows[name] = {"error": "killed"}
            print(table({name: rows[name]}, settings).splitlines()[-1], flush=True)
            if "profile" in rows[name]:
                print(rows[name]["profile"], flush=True)
            write_text(out, json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    size, settings = Size(), Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS), help="ways by name")
    parser.add_argument("--layers", type=int, default=size.architecture.num_layers)
    parser.add_argument(
        "--heads", type=int, default=size.architecture.num_attention_heads, help="of 128 each"
    )
    parser.add_argument("--size", type=int, default=size.pixels, help="pixels along a side, 16 and up")
    parser.add_argument("--text", type=int, default=size.text, help="tokens of a prompt")
    parser.add_argument("--rank", type=int, default=size.rank, help="of student and fake score")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cycles", type=int, default=settings.cycles, help="timed")
    parser.add_argument("--repeats", type=int, default=settings.repeats, help="timed forwards and backwards")
    parser.add_argument("--peak-tflops", type=float, help=f"default: {PEAK_TFLOPS:g} (H100) on CUDA")
    parser.add_argument("--profile", action="store_true", help="the most costly operations of each way")
    parser.add_argument("--out", type=Path, default=Path("out/bench/gpu.json"))
    args = parser.parse_args(arguments)
    peak = args.peak_tflops or (PEAK_TFLOPS if args.device.startswith("cuda") else None)
    architecture = Architecture(num_layers=args.layers, num_attention_heads=args.heads)
    size = Size(architecture, args.size, args.text, args.rank)
    settings = Settings(size, args.device, args.cycles, args.repeats, peak, args.profile)
    print(table(bench(args.only, settings, args.out), settings))


if __name__ == "__main__":
    main()
