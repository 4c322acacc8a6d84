"""A whole distillation from a configuration to a collection file: what `collectionlora distill` runs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..collection.atomic import atomic_write, write_text
from ..collection.catalogue import Catalogue, Effect, fingerprint, slug
from ..collection.file import save_collection, with_thumbnails
from ..collection.layouts import read_lora
from ..collection.lora_weights import LoraWeights
from ..collection.thumbnails import Pair
from .bank import TeacherBank, lora_hash
from .checkpoint import copied, load_state
from .config import ConfigError, nearest
from .distiller import BELOW, FAKE, STUDENT, Distiller
from .drawings import draw_losses, draw_similarity
from .encoding import encode_general, encode_lessons, prompt_encoder
from .errors import Cancelled
from .host import Host
from .lora import LoraAdapter, added_up, averaged, linear_shapes, target_shapes, weights_hash, widened
from .optimizer import require_optimizer
from .pictures import to_pil
from .prepare import (
    EffectPrompts,
    Prepared,
    Shown,
    check_lists,
    choose_prompts,
    draft_prompts,
    make_teacher_images,
    on_one_source,
    read_pictures,
)
from .randomness import generator
from .record import Curves, Record
from .resuming import check_origin, check_settings, has_learnt
from .roles import Roles
from .run_config import Run
from .sampling import apply_to_each
from .teacher_images import TEACHER_IMAGES, TeacherImageMaker
from .trainer import Trainer
from .workers import ALONE, Workers

SAVE_SECONDS = 1800
"""The state is saved this often where cycles are slow."""
Progress = Callable[[str, int, int], None]
"""`progress(phase, done, all)`: phases "teacher images", "tags", "cycles"."""


class DistillationRun:
    """Prepares, trains and writes the results of one `Run`.

    ::

        with DistillationRun(run, host) as job:
            job.prepare(progress)
            for record in job.train(resume=True):
                ...
            job.finish()

    Args:
        cancelled: asked often; True ends `prepare` or `train` with Cancelled. What is done by then is kept.
        first: weights that the student starts from, to add effects to a finished collection; and the fake
            score, unless it stands on the teachers.
        workers: the processes that train together, on one file system; only one of them writes.

    Raises:
        ConfigError, CollectionError, DataError: lists, teachers, titles, prompts, the few-step LoRA or first
        weights that do not fit together.
        ValueError: targets that the model has not; a teacher prompt that makes no caption.
    """

    def __init__(
        self,
        run: Run,
        host: Host,
        cancelled: Callable[[], bool] = lambda: False,
        first: LoraWeights | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.workers = workers
        self.run, self.host, self.cancelled = run, host, cancelled
        self.effects, self._samples = run.lists.effects, run.lists.samples
        check_lists(list(self.effects), self._samples, host.text_sees_image)
        run.require_few_steps()
        require_optimizer(run.distill.optimizer)
        for name in run.titles:
            if name not in self.effects:
                raise ConfigError(f"titles.{name}: no effect of that name{nearest(name, self.effects)}")
        self.shapes = linear_shapes(host.transformer)
        # Names and words that no catalogue can hold must not be found after hours of teacher images.
        self._catalogue(draft_prompts(self.effects, run.captions is not None, run.distill.seed, run.tags))
        self.bank = TeacherBank(
            {name: effect.lora_path for name, effect in self.effects.items()},
            self.shapes,
            host.device,
            host.dtype,
            run.distill.bank_ram,
        )
        config = run.distill
        targets = target_shapes(host.transformer, config.targets)
        if first is not None:  # a few-step LoRA in it may be on other modules
            targets |= {path: self.shapes[path] for path in first.down if path in self.shapes}
        trained = (STUDENT, FAKE) if config.needs_fake else (STUDENT,)
        self.adapters = {
            role: LoraAdapter.create(targets, config.rank, config.alpha, config.seed + i).to(host.device)
            for i, role in enumerate(trained)
        }
        if first is not None:
            for role, adapter in self.adapters.items():
                if role == STUDENT or config.objective.fake_base == "base":
                    adapter.load(first)
        if first is None and config.start_share:
            raise ConfigError("start_share keeps a part of what an extension starts from: name one to extend")
        self._start = self.adapters[STUDENT].weights() if config.start_share else None
        self._first = None if first is None else weights_hash([first])
        adapters = dict(self.adapters)
        below = run.below if run.few_step is None else read_lora(run.few_step, self.shapes)
        # now: the file may be gone when the state is saved
        self._few_step = lora_hash(run.few_step) if run.few_step else below and weights_hash([below])
        if below is not None:
            adapters[BELOW] = LoraAdapter.of(below).to(host.device, host.dtype)
        self.roles = Roles(host.transformer, adapters)
        self.curves = Curves()
        self._progress_file = run.output / "progress.json"

    def __enter__(self) -> DistillationRun:
        self.roles.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.roles.detach()
        self.bank.close()

    def prepare(self, progress: Progress = lambda *_: None, previewed: Sequence[str] = ()) -> Prepared:
        """Read pictures, make the teacher images that are missing and needed, choose captions and tags,
        encode all.

        previewed: effects that `preview` will show. They are shown on one source, so that their results can
        be compared: the one that most of them have. For the others a teacher image is made of it.

        Raises DataError, ValueError, CollectionError or CaptionError naming what does not fit; Cancelled.
        """
        run, host = self.run, self.host
        shown = on_one_source(previewed, self.effects, self._samples)
        samples = [*self._samples, *(one for one in shown.values() if one not in self._samples)]
        pictures = read_pictures(host, samples, self.cancelled)
        general = encode_general(host, run.lists.general, samples, pictures, self.cancelled)
        _ = self._origin  # now: files may be gone when the state is saved
        encode = prompt_encoder(host)  # one for all: most of what is shown is learnt from
        needed = sorted({*run.samples_with_images, *map(samples.index, shown.values())})
        made = make_teacher_images(
            encode,
            self.roles,
            self._maker,
            [samples[i] for i in needed],
            [pictures[i] for i in needed],
            lambda done, all_: progress("teacher images", done, all_),
            self.cancelled,
            self.workers,
        )
        for i, picture in zip(needed, made, strict=True):
            pictures[i] = picture
        previewed_pictures = {name: pictures[samples.index(one)] for name, one in shown.items()}
        pictures = pictures[: len(self._samples)]
        with self.workers.one_goes_first():  # and asks for captions, which come out differently each time
            prompts, tags = choose_prompts(
                host,
                self.effects,
                self._samples,
                pictures,
                run.captions,
                run.output / "captions.json",
                run.candidates,
                run.distill.seed,
                run.tags,
                lambda done, all_: progress("tags", done, all_),
                self.cancelled,
            )
        lessons = encode_lessons(encode, prompts, self._samples, pictures, general, self.cancelled)
        previews = {
            name: Shown(picture, encode(prompts[name].student, picture.pixels))
            for name, picture in previewed_pictures.items()
        }
        distiller = Distiller(host.velocity, self.roles, self.bank, run.distill.objective)
        self.trainer = Trainer(distiller, lessons, run.distill, self.cancelled, self.workers, run.gains)
        examples: dict[str, Shown] = {}
        for sample, picture in zip(self._samples, pictures, strict=True):
            name = sample.lora_name
            examples.setdefault(name, Shown(picture, lessons.effects[name][0].student))
        given = {name for name, one in shown.items() if one.base_pred_image is not None}
        self.prepared = Prepared(prompts, tags, self._catalogue(prompts), examples, previews, given)
        return self.prepared

    def _catalogue(self, prompts: Mapping[str, EffectPrompts]) -> Catalogue:
        effects = []
        for name, words in prompts.items():
            title = self.run.titles.get(name, name.replace("_", " ").capitalize())
            effects.append(Effect(slug(name), title, words.tag, words.student, self.effects[name].data_type))
        base = fingerprint(self.shapes, self.host.name)
        return Catalogue(tuple(effects), self.run.distill.objective.sigmas, base)

    def train(self, resume: bool = False, progress: Progress = lambda *_: None) -> Iterator[Record]:
        """Records of the cycles; saves the state every `save_every` cycles and at the end, whatever the end.

        Raises Cancelled, DivergedError (the state is saved), CheckpointError if resuming fails.
        """
        trainer, run = self.trainer, self.run
        if resume:
            self.resume()
        saved = time.monotonic()
        try:
            for record in trainer.run():
                self.curves.note(record)
                progress("cycles", trainer.cycle, run.distill.cycles)
                if trainer.cycle % run.distill.save_every == 0 or time.monotonic() - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
                yield record
        finally:
            self._save()

    def check_resumable(self) -> None:
        """Raises CheckpointError for a state of other settings or lessons, as far as is known now."""
        run, counts = self.run, Counter(sample.lora_name for sample in self._samples)
        ours = {"effects": [[n, counts[n]] for n in self.effects], "general": len(run.lists.general)}
        state = load_state(run.checkpoint, plain=True)
        if has_learnt(state):
            check_settings(run.checkpoint, state, {"config": copied(asdict(run.distill)), "lessons": ours})
            check_origin(self._progress_file, self._progress(), self._origin)

    def resume(self) -> None:
        """Take up the state that is saved, before `train`; one that has learnt nothing leaves the run free to
        have other settings. Raises CheckpointError."""
        if has_learnt(load_state(self.run.checkpoint, plain=True)):
            self.trainer.resume(self.run.checkpoint)
            self._read_progress()

    def _save(self) -> None:
        if not self.workers.leads:
            return
        content = {**self._origin, "prompts": self._prompts(), **self.curves.to_json()}
        # Before the state: after a kill in between, losses of cycles that are not in the state are dropped.
        write_text(self._progress_file, json.dumps(content))
        self.trainer.save(self.run.checkpoint)

    @cached_property
    def _maker(self) -> TeacherImageMaker:
        run = self.run
        return TeacherImageMaker(
            self.host,
            self.bank,
            run.output / TEACHER_IMAGES,
            run.targets.steps,
            run.targets.guidance,
            run.targets.batch,
            run.distill.seed,
            run.distill.objective.path_sigmas,
        )

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """What a student that goes on must have been trained on, but for prompts: they may come later."""
        first = next(one for one in self._samples if one.lora_name == next(iter(self.effects)))
        return {
            "base": self.host.identity,
            "few_step": self._few_step,
            "extend": self._first,
            "pictures": self.run.lists.pictures_hash(),
            "size": [*self.host.read_image(first.source_image).shape[1:]],
            "targets": [self.run.targets.steps, self.run.targets.guidance],
            "teachers": self.bank.hashes,
            "teacher_prompts": self.run.lists.teacher_prompts(),
        }

    def _prompts(self) -> dict[str, str]:
        return {name: words.student for name, words in self.prepared.prompts.items()}

    def _progress(self) -> dict[str, Any]:
        """What was written beside the state; nothing where it got lost: a curve is no reason to stop."""
        with suppress(OSError, ValueError):
            return dict(json.loads(self._progress_file.read_text(encoding="utf-8")))
        return {}

    def _read_progress(self) -> None:
        """Losses up to the state. Raises CheckpointError if the student has learnt from something else."""
        if not (content := self._progress()):
            return
        check_origin(self._progress_file, content, {**self._origin, "prompts": self._prompts()})
        self.curves = Curves.until(self.trainer.cycle, content)

    def result(self) -> LoraWeights:
        """The collection so far: what knows the effects, and in the last rows of every module the few-step
        LoRA; one of them is the student, the other below it."""
        student, below = self.trainer.result(), self.roles.adapters.get(BELOW)
        if self._start is not None:
            student = averaged(student, self._start, self.run.distill.start_share)
        if below is None:
            return student
        parts = [student, below.weights()]
        effects, few_step = reversed(parts) if self.run.distill.few_step_alone else parts
        return added_up([effects, widened(few_step, {path: self.shapes[path] for path in effects.down})])

    def finish(self, thumbnails: bool = True) -> dict[str, Any]:
        """Write collection (as trained so far), report.json and plots; returns the report.
        thumbnails: False leaves out those that the run asks for, which take a sample each; so does a cancel.
        """
        run, prepared, trainer = self.run, self.prepared, self.trainer
        weights = self.result()
        for part in (weights.down, weights.up):
            part.update({path: tensor.bfloat16() for path, tensor in part.items()})
        training = {
            "cycles": round(run.spent["cycles"]) + trainer.cycle,
            "preset": run.preset,
            "rank": max(map(len, weights.down.values())),
            "long_side": max(self._origin["size"]),
            "seed": run.distill.seed,
            "skipped_cycles": trainer.skipped,
            "seconds": round(run.spent["seconds"] + self.curves.seconds),
            "date": time.strftime("%Y-%m-%d"),
        }
        if method := self.host.reference_method:
            training["reference_method"] = method
        if few_step := run.held_few_step if run.few_step is None else run.few_step.name:
            training["few_step"] = few_step
        if BELOW in self.roles.adapters:  # so that who extends the collection can take it out again
            role = STUDENT if run.distill.few_step_alone else BELOW
            training["few_step_rank"] = self.roles.adapters[role].rank
        if gains := trainer.gains.effects:  # who extends the collection goes on with them
            training["gains"] = {slug(name): round(gain, 3) for name, gain in gains.items()}
        catalogue = replace(prepared.catalogue, training=training)
        save_collection(run.collection, weights, with_thumbnails(catalogue, weights, run.kept))
        if thumbnails and run.thumbnails:
            with suppress(Cancelled):  # the collection matters more, and is there
                pictures = {**run.kept, **self._thumbnails(weights)}
                save_collection(run.collection, weights, with_thumbnails(catalogue, weights, pictures))
        report: dict[str, Any] = {
            "collection": run.collection.name,
            "training": training,
            "prompts": self._prompts(),
            "tags": prepared.tags.to_json(),
            "losses": self.curves.losses,
        }
        plots = {"losses": draw_losses(report["losses"]), "similarity": draw_similarity(report["tags"])}
        for name, plot in plots.items():
            with atomic_write(run.output / f"{name}.png") as temporary:
                plot.save(temporary, "PNG")
        write_text(run.output / "report.json", json.dumps(report, indent=1))
        return report

    def shown(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """The previewed effects, each with source and wanted result, (3,H,W) each."""
        for name, one in self.prepared.previews.items():
            assert one.picture.target is not None
            wanted = one.picture.target[None].to(self.host.device, torch.float32)
            yield name, (one.picture.image, self.host.decode(wanted)[0])

    def preview(self, names: Sequence[str]) -> list[Tensor]:
        """What the student so far makes of each of these previewed effects, (3,H,W), always from the same
        noise."""
        return self._results(self.result(), {name: self.prepared.previews[name] for name in names})

    def _results(self, weights: LoraWeights, shown: Mapping[str, Shown]) -> list[Tensor]:
        config = self.run.distill

        def asked() -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
            for name, one in shown.items():
                if self.cancelled():
                    raise Cancelled("cancelled while making pictures of the effects")
                yield one.text, one.picture.source, generator(config.seed, "thumbnail", name)

        return apply_to_each(self.host, weights, asked(), config.objective.sigmas)

    def _thumbnails(self, weights: LoraWeights) -> dict[str, Pair]:
        """Source and the collection's own result, for each effect that has no picture yet, or whose picture
        is no longer what comes out: no picture of the truth is passed off."""
        kept = {} if self.run.distill.few_step_alone else self.run.kept
        examples = {name: one for name, one in self.prepared.examples.items() if slug(name) not in kept}
        made = zip(examples.items(), self._results(weights, examples), strict=True)
        return {slug(name): (to_pil(one.picture.image), to_pil(result)) for (name, one), result in made}
