"""The numbers of a distillation, as a node."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..training.config import PRESETS, Distillation, checked, distillation
from ..training.run_config import TeacherSampling
from .sockets import TRAINING, SettingsSocket

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


TARGET_BATCH = 1
"""Teacher images made at a time: what needs the least memory."""


@dataclass(frozen=True)
class Settings:
    """What Distillation Settings says."""

    preset: str
    distill: Distillation
    targets: TeacherSampling


class DistillationSettings(io.ComfyNode):
    """The numbers of a distillation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraSettings",
            display_name="Distillation Settings",
            category=TRAINING,
            description="The numbers of a distillation. Without this node: preset default.",
            search_aliases=["training settings", "hyperparameters", "learning rate", "rank"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="default",
                    tooltip="default: the paper's numbers with shared rollouts. paper: the same with fresh "
                    "ones and trajectory-anchored flow matching as published. one-gpu: a day or two on one "
                    "H100 at a long_side of 512 to 768. preview: about an hour after the teacher images. "
                    "imitation: with a few_step LoRA, a sixth of the work a cycle. few-steps: afterwards, on "
                    "the collection to extend: trains its few-step LoRA alone, for fewer steps still. "
                    "pocket: minutes on a CPU.",
                ),
                io.Int.Input(
                    "cycles", default=0, min=0, max=10**6, tooltip="Student updates; 0: the preset's."
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=1024, tooltip="Of the collection; 0: the preset's."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=False,
                    tooltip="Of student and fake score; 0: the preset's.",
                ),
                io.Int.Input(
                    "teacher_steps", default=40, min=1, max=200, tooltip="Steps of a teacher's image."
                ),
                io.Float.Input(
                    "teacher_guidance",
                    default=3.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Guidance of a teacher's image: cond + guidance (cond - uncond). Pocket "
                    "Model: 0.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,  # another seed is another run, which cannot go on
                    tooltip="Another number, another run.",
                ),
                io.String.Input(
                    "more",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Any other key of [distill], as in a run file: micro_batch = 4, then [targets] "
                    "and batch = 8, or [objective] and shift = 2.0.",
                ),
            ],
            outputs=[SettingsSocket.Output(display_name="settings", tooltip="For Distil Collection.")],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        cycles: int,
        rank: int,
        learning_rate: float,
        teacher_steps: int,
        teacher_guidance: float,
        seed: int,
        more: str,
    ) -> io.NodeOutput:
        try:
            values: dict[str, Any] = tomllib.loads(more)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"more is no TOML: {error}") from error
        values["seed"] = seed
        if cycles:
            values["cycles"] = cycles
            for kind in ("warm_cycles", "imitation_cycles"):  # as large a part of the run as the preset has
                part, whole = PRESETS[preset].get(kind, 0), PRESETS[preset].get("cycles", 0)
                if part < whole and kind not in values:
                    # but no more, or a finished run could not be made longer
                    values[kind] = min(part, round(cycles * part / whole))
        if rank:
            values["rank"] = rank
        if learning_rate:
            values |= {"lr": learning_rate, "fake_lr": values.get("fake_lr", learning_rate)}
        # a list of this name is the Linears that are adapted
        own = values.pop("targets") if isinstance(values.get("targets"), dict) else {}
        if set(own) - {"batch"}:
            raise ValueError("more: [targets] takes batch alone; the node has inputs for the rest")
        given = {
            "steps": teacher_steps,
            "guidance": teacher_guidance,
            "batch": 32 if preset == "pocket" else TARGET_BATCH,
        }
        targets = checked(TeacherSampling, {**given, **own}, "targets.")
        return io.NodeOutput(Settings(preset, distillation(values, preset), targets))
