"""Distil a collection inside ComfyUI."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy import model_management, utils
from comfy_api.latest import io, ui

from ..collection.catalogue import Catalogue
from ..collection.file import load_collection
from ..collection.jsonl import EffectEntry, EffectSample, GeneralSample
from ..collection.lora_weights import LoraWeights
from ..pocket import FEW_STEP
from ..training.checkpoint import CheckpointError
from ..training.config import Distillation, distillation
from ..training.distiller import BELOW
from ..training.drawings import draw_losses, draw_similarity
from ..training.errors import DivergedError
from ..training.extend import extended
from ..training.hosts.comfy import ComfyHost
from ..training.lora import PAPER_TARGETS, block_targets, linear_shapes
from ..training.pictures import to_tensor
from ..training.planning.time_left import TimeLeft
from ..training.prepare import TAGS
from ..training.run import DistillationRun
from ..training.run_config import Lists, Run, TeacherSampling
from ..training.teacher_images import TEACHER_IMAGES
from .effect import LONG_SIDE, REFERENCE_METHODS, SHAPE, method_of, multiple_for
from .events import CANCELLED, RunEvents
from .files import BUILT_IN, lora_changed
from .places import folder_name, unused
from .planning import plan_of, room_for
from .previews import Previews
from .settings import TARGET_BATCH, Settings
from .sockets import (
    TRAINING,
    Collection,
    CollectionSocket,
    EffectImagesSocket,
    GeneralImagesSocket,
    SettingsSocket,
    TeachersSocket,
)

GO_ON, ANEW = "go on where it stopped", "anew"
NONE = "none"
AS_THE_MODEL_SAYS = "as the model says"
SMALLER = "Load the base in fp8 if it is not, lower rank or long_side, or take a larger card."


class DistilCollection(io.ComfyNode):
    """The run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraDistil",
            display_name="Distil Collection",
            category=TRAINING,
            description="Distils all teachers and few-step sampling into one LoRA. Cancel keeps what was "
            "trained; running again goes on where it stopped.",
            search_aliases=["train lora", "distill", "merge loras", "collection lora", "resume training"],
            is_output_node=True,
            hidden=[io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model", tooltip="The base of the teachers, without any LoRA on it."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its autoencoder."),
                TeachersSocket.Input("teachers", tooltip="From Teachers."),
                EffectImagesSocket.Input("images", tooltip="From Effect Images."),
                io.String.Input(
                    "name", default="my collection", tooltip="The run's folder below output/collectionlora."
                ),
                io.Combo.Input(
                    "start",
                    options=[GO_ON, ANEW],
                    default=GO_ON,
                    tooltip="anew: an earlier run of that name is kept as name_2, and its teacher images "
                    "are used again. Set it back before running again: each run with it begins from nothing.",
                ),
                LONG_SIDE,
                SHAPE,
                io.Int.Input(
                    "preview_every", default=50, min=0, max=10**6, tooltip="Cycles between previews; 0: none."
                ),
                GeneralImagesSocket.Input(
                    "general",
                    optional=True,
                    tooltip="From General Images: keeps the base's own skills.",
                ),
                SettingsSocket.Input("settings", optional=True, tooltip="From Distillation Settings."),
                CollectionSocket.Input(
                    "extend",
                    optional=True,
                    tooltip="A finished collection to add effects to: its effects keep their tags and "
                    "prompts, and its rank stays.",
                ),
                io.Boolean.Input(
                    "thumbnails",
                    default=False,
                    optional=True,
                    tooltip="Put a picture of each effect into the file: one of your pictures, and the "
                    "result. Whoever gets the file sees them. Pictures of extend are kept in any case.",
                ),
                io.Combo.Input(
                    "few_step",
                    options=[NONE, BUILT_IN, *folder_paths.get_filename_list("loras")],
                    default=NONE,
                    optional=True,
                    tooltip="A LoRA of few-step sampling for this base, such as a Lightning LoRA: the "
                    "student is sampled on top of it and only learns what is missing, and the collection "
                    "holds both.",
                ),
                io.Combo.Input(
                    "reference_method",
                    options=[AS_THE_MODEL_SAYS, *REFERENCE_METHODS],
                    default=AS_THE_MODEL_SAYS,
                    optional=True,
                    advanced=True,
                    tooltip="As in core's Edit Model Reference Method. Qwen-Image-Edit-2511 wants "
                    "index_timestep_zero; the official file says so itself, a GGUF may not.",
                ),
            ],
            outputs=[
                CollectionSocket.Output(display_name="collection", tooltip="For Save Collection."),
                io.String.Output(display_name="report", tooltip="What was trained, in words."),
                io.Image.Output(display_name="losses", tooltip="Loss curves."),
                io.Image.Output(
                    display_name="prompts", tooltip="How alike the effects' prompts are to the encoder."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, few_step: str | None = NONE, **_: Any) -> Any:
        """Run again when the few-step LoRA has been written anew."""
        return lora_changed(few_step)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        teachers: tuple[EffectEntry, ...],
        images: tuple[EffectSample, ...],
        name: str,
        start: str,
        long_side: int,
        shape: str,
        preview_every: int,
        general: tuple[GeneralSample, ...] = (),
        settings: Settings | None = None,
        extend: Collection | None = None,
        thumbnails: bool = False,
        few_step: str = NONE,
        reference_method: str = AS_THE_MODEL_SAYS,
    ) -> io.NodeOutput:
        settings = settings or Settings("default", distillation(), TeacherSampling(batch=TARGET_BATCH))
        output = Path(folder_paths.get_output_directory()) / "collectionlora" / folder_name(name)
        lists = Lists({teacher.lora_name: teacher for teacher in teachers}, images, general)
        run = Run(
            output,
            lists,
            distill=settings.distill,
            targets=settings.targets,
            preset=settings.preset,
            long_side=long_side,
            few_step=_few_step_file(few_step),
            thumbnails=thumbnails,
        )
        first, method = None, reference_method.replace(AS_THE_MODEL_SAYS, "")
        if extend is not None:
            run, first = extended(run, extend.name, extend.weights, extend.catalogue)
            method = method or method_of(extend.catalogue)
        size = long_side, multiple_for(long_side), shape == "square"
        host = ComfyHost(model, clip, vae, *size, method)
        run = replace(run, distill=_fitting(run.distill, host))
        shapes = linear_shapes(host.transformer)
        known = {} if first is None else {path: shapes[path] for path in first.down if path in shapes}
        with host.lend(room_for(run, host, known)):
            if start == ANEW and output.exists():  # not before: a base that is refused starts nothing
                begin_anew(output)
            events = RunEvents(run.output, run.distill.cycles, _workflow(cls.hidden.extra_pnginfo))
            report = _distil(run, host, events, preview_every, first)
        weights, catalogue = load_collection(run.collection, shapes)
        text = _in_words(run, report, catalogue)
        plots = (draw_losses(report["losses"]), draw_similarity(report["tags"]))
        pictures = [to_tensor(plot).movedim(0, -1)[None] for plot in plots]
        collection = Collection(f"{output.name}.safetensors", weights, catalogue)
        return io.NodeOutput(collection, text, *pictures, ui=ui.PreviewText(text))


def begin_anew(output: Path) -> None:
    """Keep an earlier run's folder by another name. Its teacher images took hours, and are known by all that
    they depend on, as tags are: both runs have them."""
    kept = output.rename(unused(output, "_"))
    for path in (*(kept / TEACHER_IMAGES).glob("*"), kept / TAGS):
        if path.is_file():
            copy = output / path.relative_to(kept)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)  # files are replaced as a whole, never written into
            except OSError:  # a disk without links
                shutil.copy2(path, copy)
    output.mkdir(exist_ok=True)


def _workflow(notes: Any) -> str:
    """The id of the workflow that a page has sent with the prompt."""
    workflow = notes.get("workflow") if isinstance(notes, dict) else None
    return str(workflow.get("id", "")) if isinstance(workflow, dict) else ""


def _few_step_file(name: str) -> Path | None:
    if name == NONE:
        return None
    if name == BUILT_IN:
        return FEW_STEP
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def _fitting(config: Distillation, host: ComfyHost) -> Distillation:
    """The paper's targets are Qwen-Image's; a model that has none of them is adapted in all its blocks."""
    ends = linear_shapes(host.transformer)
    known = any(path.endswith(f".{target}") for path in ends for target in config.targets)
    if known or config.targets != PAPER_TARGETS:
        return config
    return replace(config, targets=block_targets(host.transformer))


def _distil(
    run: Run, host: ComfyHost, events: RunEvents, preview_every: int, first: LoraWeights | None
) -> dict[str, Any]:
    """The report. Whatever ends the run, checkpoint and collection are written first and the page is told."""
    try:
        with DistillationRun(run, host, _cancelled, first) as job:
            report = _train(job, host, events, preview_every)
    except BaseException as error:
        cancelled = isinstance(error, model_management.InterruptProcessingException)
        events.ended(CANCELLED if cancelled else f"{type(error).__name__}: {error}".strip(": "))
        raise
    events.ended("")
    return report


def _cancelled() -> bool:
    """Raises if the user has cancelled."""
    model_management.throw_exception_if_processing_interrupted()
    return False


def _train(job: DistillationRun, host: ComfyHost, events: RunEvents, preview_every: int) -> dict[str, Any]:
    run = job.run
    bar = utils.ProgressBar(run.distill.cycles)

    def progress(phase: str, done: int, total: int) -> None:
        if phase != "cycles":
            bar.update_absolute(done, total)
            events.phase(phase, done, total)

    plan, smaller, short = plan_of(run, host, job)
    warning = "\n".join(filter(None, (smaller, short)))
    logging.info("CollectionLoRA's plan:\n%s", plan)
    if warning:
        logging.warning("CollectionLoRA may not fit: %s", warning)
    events.plan(f"{plan}\n{warning}".strip())
    try:
        if run.checkpoint.is_file():
            job.check_resumable()  # not after hours of teacher images
        prepared = job.prepare(progress, list(job.effects) if preview_every else [])
        events.prompts(prepared.tags)
        events.shows(dict(zip(job.effects, prepared.catalogue.effects)), prepared.given)
        previews = Previews(job, events) if preview_every else None
        if run.checkpoint.is_file():
            job.resume()
            events.resumed(job.trainer.cycle, job.curves.losses, job.curves.effect_losses)
        elif previews:
            previews.make()
        times = TimeLeft(
            run.distill, run.distill.p_effect if run.lists.general else 1.0, BELOW in job.roles.adapters
        )
        for record in job.train(progress=progress):
            each, left = times.after(record)
            events.cycle(record, job.trainer.skipped, each, left)
            cycle = job.trainer.cycle
            picture = None
            if previews and cycle % preview_every == 0:
                picture = ("JPEG", previews.make(), 512)
            if events.save_wanted:
                _keep(job, events)
                events.saved()
            bar.update_absolute(cycle, run.distill.cycles, picture)
        report = job.finish()
        events.kept = run.collection
        return report
    except CheckpointError as error:
        # What is in the folder belongs to another run: nothing of it may be written over.
        raise CheckpointError(f"{error} (start = {ANEW})") from error
    except BaseException as error:
        where = ""
        if getattr(job, "trainer", None) is not None and job.trainer.cycle > 0:  # the state is there already
            _keep(job, events)
            where = f"; what was trained is in {run.collection}"
        if model_management.is_oom(error):
            raise RuntimeError(f"out of memory{where}. {smaller or SMALLER}") from error
        if isinstance(error, DivergedError):
            raise DivergedError(f"{error}{where}") from error
        raise


def _keep(job: DistillationRun, events: RunEvents) -> None:
    """Write what was trained so far."""
    job.finish(thumbnails=False)
    events.kept = job.run.collection
    logging.info("CollectionLoRA: %d cycles are kept in %s", job.trainer.cycle, events.kept)


def _in_words(run: Run, report: Mapping[str, Any], catalogue: Catalogue) -> str:
    training = {k: v for k, v in report["training"].items() if not isinstance(v, dict)}
    lines = [f"{run.collection}", *(f"{key}: {value}" for key, value in training.items())]
    lines.append(f"pictures in the file: {sum(bool(effect.thumbnail) for effect in catalogue.effects)}")
    lines += [f"{name}: {prompt}" for name, prompt in report["prompts"].items()]
    return "\n".join(lines)
