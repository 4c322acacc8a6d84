"""A finished collection is gone on with: what people know its effects by stays as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from collectionlora.collection.catalogue import Catalogue, Effect, fingerprint, slug
from collectionlora.collection.errors import CollectionError
from collectionlora.collection.file import (
    load_collection,
    read_catalogue,
    save_collection,
    with_thumbnails,
)
from collectionlora.collection.layouts import read_lora
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.training.checkpoint import CheckpointError
from collectionlora.training.config import ConfigError
from collectionlora.training.extend import extended, read_extended
from collectionlora.training.lora import linear_shapes
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import Run, read_run

KNOWN = Effect("frost", "Frosted glass", "<frost_1>", "<frost_1> cover it with ice")


def begun(project: Any, shapes: Any) -> LoraWeights:
    """Rank 3 on "enter", rank 1 on "leave", nothing on "middle"."""
    parts = {"comic": "enter", "frost": "leave"}
    loras = {path: read_lora(project.folder / f"{name}.safetensors", shapes) for name, path in parts.items()}
    return LoraWeights(
        {path: lora.down[path] for path, lora in loras.items()},
        {path: lora.up[path] for path, lora in loras.items()},
        {path: lora.alpha[path] for path, lora in loras.items()},
    )


def finished(project: Any, shapes: Any, **training: Any) -> Catalogue:
    """finished.safetensors: the effect frost, with a picture; a LoRA of other modules than the run's targets,
    and of different ranks, as one with a few-step LoRA in it may be."""
    weights = begun(project, shapes)
    bare = Catalogue((KNOWN,), (1.0, 0.5, 0.0), fingerprint(shapes, "tiny"), training=training)
    picture = Image.new("RGB", (64, 64), "red")
    catalogue = with_thumbnails(bare, weights, {"frost": (picture, picture)})
    save_collection(project.folder / "finished.safetensors", weights, catalogue)
    project.settings["extend"] = "finished.safetensors"
    return catalogue


def test_known_effects_keep_tag_prompt_title_and_picture_and_the_rank_stays(project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    before = finished(project, shapes, few_step="lightning.safetensors", cycles="many", seconds=10**400)
    project.settings["distill"] |= {"rank": 2, "alpha": 4.0, "lr": 0.0, "fake_lr": 0.0}
    project.settings["titles"] = {"neon": "Neon lights"}
    asked = read_run(project.write())
    run, first = read_extended(asked, shapes)
    with DistillationRun(run, host, first=first) as job:
        job.prepare()
        for _ in job.train():
            pass
        job.finish()
    weights, after = load_collection(run.collection, shapes)
    told, known = (replace(one["frost"], thumbnail=None, category="") for one in (after, before))
    assert told == known
    assert [(effect.name, effect.title) for effect in after.effects] == [
        ("frost", "Frosted glass"),
        ("neon", "Neon lights"),
        ("comic", "Comic"),
    ]
    assert [bool(effect.thumbnail) for effect in after.effects] == [True, False, False]
    assert after.training["cycles"] == run.distill.cycles  # what is no number counts for none
    assert after.training["rank"] == 3
    assert after.training["few_step"] == "lightning.safetensors"
    assert set(weights.down) == {"enter", "middle", "leave"}
    assert weights.up["middle"].abs().max() == 0
    start = begun(project, shapes)
    for path in start.down:  # nothing was learnt: as it began, in bfloat16
        made, wanted = (
            lora.scale(path) * lora.up[path].float() @ lora.down[path].float() for lora in (weights, start)
        )
        torch.testing.assert_close(made, wanted, atol=0.02 * wanted.abs().max().item(), rtol=0)


def test_a_run_that_extends_nothing_is_itself(project: Any, host: Any) -> None:
    run = read_run(project.write())
    assert read_extended(run, linear_shapes(host.transformer)) == (run, None)


def trained(run: Run, host: Any, first: LoraWeights | None = None, resume: bool = False) -> None:
    with DistillationRun(run, host, first=first) as job:
        job.prepare()
        for _ in job.train(resume):
            pass
        job.finish(thumbnails=False)


def with_few_step(project: Any, host: Any) -> LoraWeights:
    """Trains out/collection.safetensors on top of comic.safetensors, of rank 3; extending it is then asked
    for, by imitation alone, and its weights returned."""
    project.settings["few_step"] = "comic.safetensors"
    run = read_run(project.write())
    trained(run, host)
    del project.settings["few_step"]
    project.settings |= {"output": "more", "extend": "out/collection.safetensors"}
    project.settings["distill"] |= {"cycles": 2, "warm_cycles": 0, "imitation_cycles": 2, "lr": 0.1}
    return load_collection(run.collection, linear_shapes(host.transformer))[0]


def test_a_few_step_lora_that_a_collection_holds_stays_as_it_is_below_the_student(
    project: Any, host: Any
) -> None:
    shapes = linear_shapes(host.transformer)
    before = with_few_step(project, host)
    asked = read_run(project.write())
    run, first = read_extended(asked, shapes)
    assert first is not None
    assert run.distill.rank == asked.distill.rank
    trained(run, host, first)
    after, catalogue = load_collection(run.collection, shapes)
    assert catalogue.training["few_step"] == "comic.safetensors"
    assert catalogue.training["few_step_rank"] == 3
    assert catalogue.training["rank"] == asked.distill.rank + 3
    assert before.down.keys() == after.down.keys()
    for path in before.down:
        assert torch.equal(after.down[path][-3:], before.down[path][-3:])
        assert torch.equal(after.up[path][:, -3:], before.up[path][:, -3:])
        assert path not in first.down or not torch.equal(after.up[path][:, :-3], before.up[path][:, :-3])
    assert first.down.keys() < before.down.keys()  # the few-step LoRA has a module of its own
    trained(replace(run, distill=replace(run.distill, cycles=3)), host, first, resume=True)


def test_a_few_step_lora_that_a_collection_holds_learns_alone(project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    before = with_few_step(project, host)
    project.settings["preset"] = "few-steps"
    targets = project.settings["distill"]["targets"]
    project.settings["distill"] = {"cycles": 2, "batch": 2, "lr": 0.1, "targets": targets}
    run, first = read_extended(read_run(project.write()), shapes)
    assert run.samples_with_images == []
    assert run.distill.rank == 3
    trained(run, host, first)
    after, catalogue = load_collection(run.collection, shapes)
    told = load_collection(project.folder / "out" / "collection.safetensors", shapes)[1]
    assert catalogue.training["cycles"] == told.training["cycles"] + 2
    assert catalogue.training["seconds"] >= told.training["seconds"]
    for key in ("few_step", "few_step_rank", "rank"):
        assert catalogue.training[key] == told.training[key]
    assert [replace(e, thumbnail=None) for e in catalogue.effects] == [
        replace(e, thumbnail=None) for e in told.effects
    ]
    assert before.down.keys() == after.down.keys()
    for path in before.down:
        assert torch.equal(after.down[path][:-3], before.down[path][:-3])
        assert torch.equal(after.up[path][:, :-3], before.up[path][:, :-3])
        assert not torch.equal(after.up[path][:, -3:], before.up[path][:, -3:])
    trained(replace(run, distill=replace(run.distill, cycles=3)), host, first, resume=True)
    # the other part goes on from there as from any collection
    project.settings |= {"preset": "default", "output": "once_more", "extend": "more/collection.safetensors"}
    again, _ = read_extended(read_run(project.write()), shapes)
    assert again.below is not None
    assert torch.equal(again.below.up["leave"], read_lora(run.collection, shapes).up["leave"][:, -3:].float())


def test_what_an_extension_starts_from_may_have_a_share_in_what_is_saved(project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    finished(project, shapes)
    project.settings["distill"] |= {"cycles": 2, "ema": 0.0, "lr": 0.1}
    run, first = read_extended(read_run(project.write()), shapes)
    made = []
    for share in (0.0, 0.25, 1.0):  # the later ones are those of the state of the first
        run = replace(run, distill=replace(run.distill, start_share=share))
        trained(run, host, first, resume=run.checkpoint.exists())
        made.append(load_collection(run.collection, shapes)[0])
    for path in made[0].down:
        learnt, mixed, start = ([one.down[path].float(), one.up[path].float()] for one in made)
        for part, wanted in zip(mixed, map(torch.lerp, learnt, start, [0.25, 0.25]), strict=True):
            torch.testing.assert_close(part, wanted, atol=0.01, rtol=0.01)
        assert not torch.equal(learnt[1], start[1])
    before = begun(project, shapes)
    for path in before.down:
        is_, was = (
            one.scale(path) * one.up[path].float() @ one.down[path].float() for one in (made[2], before)
        )
        torch.testing.assert_close(is_, was, atol=0.02 * was.abs().max().item(), rtol=0)
    with pytest.raises(ConfigError, match=r"start_share .* starts from: name one to extend"):
        DistillationRun(run, host)


def test_a_few_step_lora_that_learns_alone_adds_no_effects(project: Any, host: Any) -> None:
    with_few_step(project, host)
    project.settings["preset"], project.settings["distill"] = "few-steps", {}
    comic = {**project.lists["effects"][0], "lora_name": "cartoon"}
    project.lists["effects"].append(comic)
    project.lists["data"].append({**project.lists["data"][0], "lora_name": "cartoon"})
    with pytest.raises(ConfigError, match=r"collection\.safetensors lacks 'cartoon': add it first"):
        read_extended(read_run(project.write()), linear_shapes(host.transformer))


def test_a_few_step_lora_learns_alone_where_it_is_known_and_in_as_many_steps(project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    finished(project, shapes, few_step="lightning.safetensors")  # its rank is not told
    for name in ("effects", "data"):
        project.lists[name] = [row for row in project.lists[name] if row["lora_name"] == "frost"]
    project.settings["preset"], project.settings["distill"] = "few-steps", {}
    with pytest.raises(ConfigError, match=r"finished\.safetensors does not say where"):
        read_extended(read_run(project.write()), shapes)
    finished(project, shapes, few_step="lightning.safetensors", few_step_rank=1)
    weights, catalogue = load_collection(project.folder / "finished.safetensors", shapes)
    run = read_run(project.write())
    with pytest.raises(ConfigError, match=r"sampled in 2 steps, the first to 0\.5: set objective\.steps"):
        extended(run, "finished.safetensors", weights, catalogue)


def test_a_few_step_lora_that_learns_alone_shows_what_then_comes_out(project: Any, host: Any) -> None:
    with_few_step(project, host)
    targets = project.settings["distill"]["targets"]
    project.settings |= {"preset": "few-steps", "thumbnails": True}
    project.settings["distill"] = {"cycles": 1, "batch": 2, "targets": targets}
    run, first = read_extended(read_run(project.write()), linear_shapes(host.transformer))
    old = (Image.new("RGB", (6, 4), "red"),) * 2
    run = replace(run, kept={slug(name): old for name in run.lists.effects})
    with DistillationRun(run, host, first=first) as job:
        job.prepare()
        for _ in job.train():
            pass
        job.finish(thumbnails=False)
        kept = read_catalogue(run.collection)
        job.finish()
    made = read_catalogue(run.collection)
    for before, after in zip(kept.effects, made.effects, strict=True):
        assert before.thumbnail is not None
        assert after.thumbnail not in (None, before.thumbnail)


def test_a_checkpoint_is_not_resumed_on_another_held_few_step_lora(project: Any, host: Any) -> None:
    with_few_step(project, host)
    run, first = read_extended(read_run(project.write()), linear_shapes(host.transformer))
    trained(run, host, first)
    assert run.below is not None
    weaker = replace(run.below, alpha={path: alpha / 2 for path, alpha in run.below.alpha.items()})
    with pytest.raises(CheckpointError, match="another few_step LoRA"):
        trained(replace(run, below=weaker), host, first, resume=True)
    assert first is not None
    weaker = replace(first, alpha={path: alpha / 2 for path, alpha in first.alpha.items()})
    with pytest.raises(CheckpointError, match="another collection to extend"):
        trained(run, host, weaker, resume=True)
    trained(run, host, first, resume=True)


@pytest.mark.parametrize("rank", [0, -3, 4, 5, 3.0, "3"])
def test_a_few_step_rank_that_the_weights_have_not_is_refused(rank: Any, project: Any, host: Any) -> None:
    with_few_step(project, host)
    run, shapes = read_run(project.write()), linear_shapes(host.transformer)
    assert run.extend is not None
    weights, catalogue = load_collection(run.extend, shapes)
    catalogue.training["few_step_rank"] = rank
    with pytest.raises(
        ConfigError, match=r"collection\.safetensors says .* rank '?-?[0-9.]+'?, but .* get it"
    ):
        extended(run, run.extend.name, weights, catalogue)


def test_an_extension_goes_on_with_the_gains_of_the_collection(project: Any, host: Any) -> None:
    project.settings["few_step"] = "comic.safetensors"
    shapes = linear_shapes(host.transformer)
    finished(project, shapes, gains={"frost": 1.3})
    project.settings["distill"] |= {"cycles": 2, "warm_cycles": 0, "imitation_cycles": 2}
    run, first = read_extended(read_run(project.write()), shapes)
    assert run.gains == {"frost": 1.3}
    with DistillationRun(run, host, first=first) as job:
        job.prepare()
        assert job.trainer.gains.effects == {"frost": 1.3}
    trained(run, host, first)
    assert load_collection(run.collection, shapes)[1].training["gains"] == {"frost": 1.3}
    trained(replace(run, distill=replace(run.distill, cycles=3)), host, first, resume=True)
    assert load_collection(run.collection, shapes)[1].training["gains"] == {"frost": 1.3}


@pytest.mark.parametrize("gains", ["frost", {"frost": "much"}, {"frost": None}, {"frost": 0.5}, {"frost": 9}])
def test_gains_that_cannot_be_are_refused(gains: Any, project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    finished(project, shapes, gains=gains)
    with pytest.raises(ConfigError, match=r"finished\.safetensors.* gain.* get it again"):
        read_extended(read_run(project.write()), shapes)


def test_a_rank_without_a_few_step_lora_says_nothing(project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    finished(project, shapes, few_step_rank=1)
    run, first = read_extended(read_run(project.write()), shapes)
    assert run.below is None
    assert first is not None
    assert first.down.keys() == begun(project, shapes).down.keys()


def test_an_effect_without_teacher_and_a_second_few_step_lora_are_refused(project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    finished(project, shapes, few_step="lightning.safetensors")
    project.settings["few_step"] = "comic.safetensors"
    with pytest.raises(ConfigError, match=r"already \(lightning.safetensors\): extend it without few_step"):
        read_extended(read_run(project.write()), shapes)
    del project.settings["few_step"]
    for name in ("effects", "data"):
        project.lists[name] = [row for row in project.lists[name] if row["lora_name"] != "frost"]
    with pytest.raises(ConfigError, match="'frost', which has no teacher here"):
        read_extended(read_run(project.write()), shapes)


def test_a_lora_without_catalogue_cannot_be_extended(project: Any, host: Any) -> None:
    project.settings["extend"] = "neon.safetensors"
    with pytest.raises(CollectionError, match=r"neon\.safetensors"):
        read_extended(read_run(project.write()), linear_shapes(host.transformer))


def test_teachers_are_known_by_the_catalogues_names(project: Any, host: Any) -> None:
    shapes = linear_shapes(host.transformer)
    finished(project, shapes)
    spelt = json.loads(json.dumps(project.lists).replace('"frost"', '"Frost"'))
    project.lists = spelt
    assert slug("Frost") == "frost"
    run, _ = read_extended(read_run(project.write()), shapes)
    assert run.lists.effects["Frost"].recaption_prompt_with_trigword == KNOWN.prompt
    assert run.titles["Frost"] == "Frosted glass"


def test_an_effect_whose_prompt_does_not_begin_with_its_tag_keeps_both_and_its_category(
    project: Any, host: Any
) -> None:
    """As of a collection that was made with tags = "none"."""
    shapes = linear_shapes(host.transformer)
    known = Effect("frost", "Frosted glass", "frost", "Cover it with ice", "winter")
    catalogue = Catalogue((known,), (1.0, 0.5, 0.0), fingerprint(shapes, "tiny"))
    save_collection(project.folder / "finished.safetensors", begun(project, shapes), catalogue)
    project.settings["extend"] = "finished.safetensors"
    asked = read_run(project.write())
    entries = {name: replace(one, data_type="") for name, one in asked.lists.effects.items()}
    run, first = read_extended(replace(asked, lists=replace(asked.lists, effects=entries)), shapes)
    with DistillationRun(run, host, first=first) as job:
        assert job.prepare().catalogue["frost"] == known
