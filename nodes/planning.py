"""What a run will hold and take, before it starts: what its base must leave free, and all of it in words."""

from __future__ import annotations

import shutil
from dataclasses import replace

import psutil
import torch
from comfy import model_management

from ..collection.lora_weights import Shapes
from ..pocket.text import TOKENS
from ..training.distiller import STUDENT
from ..training.hosts.comfy import ComfyHost
from ..training.lora import target_shapes
from ..training.planning.architecture import Architecture
from ..training.planning.cards import RESERVE, card_named
from ..training.planning.footprint import (
    FP8,
    GIB,
    TEXT_TOKENS,
    Job,
    Setting,
    Storage,
    adapter_bytes,
    base_bytes,
)
from ..training.planning.jobs import job_on
from ..training.planning.plan import Plan, faster, remedy, shortage, words
from ..training.run import DistillationRun
from ..training.run_config import Run

MARGIN = 1.1
"""Plans are right within a tenth."""


def room_for(run: Run, host: ComfyHost, extended: Shapes) -> int | None:
    """Bytes that training needs on the device beside the base's weights.

    None where the base has to be there as a whole: on a CPU, and for a model whose activations nobody has
    described.

    Args:
        extended: Linears of the collection that the run extends.
    """
    architecture = Architecture.found_in(host.transformer)
    if architecture is None or host.device.type == "cpu":
        return None
    try:
        job, setting = _on_this_model(run, host, architecture, extended, host.size)
        beside = Plan(job, setting, 0).bytes - base_bytes(architecture, setting.storage)
    except ValueError:
        return 0  # lists or targets that do not fit: the run itself says so, to the page too
    return round(MARGIN * beside + RESERVE)


def plan_of(run: Run, host: ComfyHost, work: DistillationRun) -> tuple[str, str, str]:
    """The plan of a run on the model as it is lent, what to change where the device's memory is too small for
    it, and what RAM and disk lack; each empty where there is enough.

    Hours are said on a device whose speed is known. What a GPU would hold a CPU holds in RAM.
    """
    architecture = Architecture.found_in(host.transformer)
    if architecture is None:
        return _without_activations(run, host), "", ""
    shapes = work.adapters[STUDENT].shapes
    job, setting = _on_this_model(run, host, architecture, shapes, host.loaded)
    # base and adapters are there already
    adapters = work.roles.adapters.values()
    held = host.loaded + sum(p.nbytes for adapter in adapters for p in adapter.parameters())
    room = int(model_management.get_free_memory(host.device) - RESERVE) + held
    card = card_named(torch.cuda.get_device_name(host.device)) if host.device.type == "cuda" else None
    plan = Plan(job, setting, room, card)
    text = "\n".join(part for part in (words(plan), faster(plan)) if part)
    made = sum(file.stat().st_size for file in run.output.rglob("*") if file.is_file())
    disk = next(folder for folder in (run.output, *run.output.parents) if folder.exists())
    free = shutil.disk_usage(disk).free + made
    ram = psutil.virtual_memory().total
    on_cpu = host.device.type == "cpu"
    return text, "" if on_cpu else remedy(plan), shortage(plan, ram, free, on_cpu)


def _on_this_model(
    run: Run, host: ComfyHost, architecture: Architecture, extended: Shapes, loaded: int
) -> tuple[Job, Setting]:
    """What `run` does by its own settings on the base as ComfyUI holds it, with so many bytes of it on the
    device."""
    on_cpu = host.device.type == "cpu"
    item = host.dtype.itemsize
    # quantised or not: bytes of a number on average
    weight = (host.size - item * architecture.other_parameters) / architecture.weights
    base = Storage("as loaded", weight, item)
    if loaded < host.size:
        waiting = int((host.size - loaded) / (architecture.block_weights * weight))
        blocks = max(0, architecture.num_layers - waiting)
        share = loaded / host.size
        base = replace(base, name=f"as loaded, {share:.0%} of it on the device", blocks=blocks)
    checkpointing = "full" if host.checkpointing else "none"
    job = replace(
        job_on(architecture, run),
        text=TEXT_TOKENS if host.text_sees_image else TOKENS,
        storages=(base,) if on_cpu or weight <= FP8.weight else (base, FP8),
        checkpointing=(checkpointing,),
        fused=False,
        extended=extended,
    )
    return job, Setting(
        base, run.distill.optimizer, run.distill.micro_batch, run.targets.batch, checkpointing
    )


def _without_activations(run: Run, host: ComfyHost) -> str:
    """Of a model whose activations nobody has described: what can be counted."""
    targets = target_shapes(host.transformer, run.distill.targets)
    parts = adapter_bytes(targets, run.distill, run.distill.optimizer)
    lines = [f"{name:<32}{size / GIB:8.2f} GiB" for name, size in {"base": host.size, **parts}.items()]
    return "\n".join([*lines, "and teachers and activations, which are not predicted for this model"])
