"""What a run will hold and take, in words, before it starts."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy import model_management

from ..pocket.text import TOKENS
from ..training.architecture import Architecture
from ..training.cards import card_named
from ..training.distiller import STUDENT
from ..training.footprint import FP8, GIB, TEXT_TOKENS, Setting, Storage, adapter_bytes
from ..training.hosts.comfy import ComfyHost
from ..training.jobs import job_on
from ..training.lora import target_shapes
from ..training.plan import Plan, faster, remedy, words
from ..training.run import DistillationRun
from ..training.run_config import Run


def plan_of(run: Run, host: ComfyHost, work: DistillationRun) -> tuple[str, str]:
    """The plan of a run on the model as ComfyUI holds it, and a warning, empty where the run fits.

    Hours are said on a device whose speed is known; on a CPU there is no warning, for it has other memory.
    """
    on_cpu = host.device.type == "cpu"
    item = 4 if on_cpu else 2
    architecture = Architecture.found_in(host.transformer)
    if architecture is None:
        return _without_activations(run, host), ""
    # as it is loaded, quantised or not: bytes of a number on average
    weight = (host.size - item * architecture.other_parameters) / architecture.weights
    loaded = Storage("as loaded", weight, item)
    checkpointing = "full" if host.checkpointing else "none"
    job = replace(
        job_on(architecture, run),
        side=host.long_side,
        text=TEXT_TOKENS if host.text_sees_image else TOKENS,
        storages=(loaded,) if on_cpu or weight <= FP8.weight else (loaded, FP8),
        checkpointing=(checkpointing,),
        fused=False,
        extended=work.adapters[STUDENT].shapes,
    )
    set_now = Setting(
        loaded, run.distill.optimizer, run.distill.micro_batch, run.targets.batch, checkpointing
    )
    # base and adapters are there already
    held = host.size + sum(p.nbytes for adapter in work.adapters.values() for p in adapter.parameters())
    room = int(model_management.get_free_memory(host.device)) + held
    card = card_named(torch.cuda.get_device_name(host.device)) if host.device.type == "cuda" else None
    plan = Plan(job, set_now, room, card)
    text = "\n".join(part for part in (words(plan), faster(plan)) if part)
    return text, "" if on_cpu else remedy(plan)


def _without_activations(run: Run, host: ComfyHost) -> str:
    """Of a model whose activations nobody has described: what can be counted."""
    targets = target_shapes(host.transformer, run.distill.targets)
    parts = adapter_bytes(targets, run.distill.rank, run.distill.optimizer)
    lines = [f"{name:<32}{size / GIB:8.2f} GiB" for name, size in {"base": host.size, **parts}.items()]
    return "\n".join([*lines, "and teachers and activations, which are not predicted for this model"])
