"""A run ends in a collection, whatever its end, and can always be gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from collectionlora.collection.errors import CollectionError
from collectionlora.collection.file import load_collection, read_catalogue
from collectionlora.collection.layouts import read_lora
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.collection.thumbnails import pair_of
from collectionlora.training.checkpoint import CheckpointError
from collectionlora.training.config import ConfigError
from collectionlora.training.errors import Cancelled, DivergedError
from collectionlora.training.lora import linear_shapes
from collectionlora.training.prepare import DataError
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import read_run

Never = Callable[[], bool]


def whole(project: Any, host: Any, resume: bool = False, cancelled: Never = lambda: False) -> dict[str, Any]:
    """Prepare, train to the end or to the cancel, finish."""
    with DistillationRun(read_run(project.write()), host, cancelled) as job:
        job.prepare()
        try:
            for _ in job.train(resume):
                pass
        except Cancelled:
            assert cancelled()
        return job.finish()


def shared(project: Any, host: Any) -> LoraWeights:
    """What the collection file holds."""
    path = project.folder / project.settings["output"] / "collection.safetensors"
    return load_collection(path, linear_shapes(host.transformer))[0]


def same(one: LoraWeights, other: LoraWeights) -> bool:
    return one.down.keys() == other.down.keys() and all(
        torch.equal(one.down[path], other.down[path]) and torch.equal(one.up[path], other.up[path])
        for path in one.down
    )


def test_a_run_writes_a_collection_with_effects_tags_and_thumbnails(project: Any, host: Any) -> None:
    project.settings |= {"titles": {"frost": "Frosted glass"}, "thumbnails": True}
    report = whole(project, host)
    run = read_run(project.write())
    weights, catalogue = shared(project, host), read_catalogue(run.collection)
    assert [effect.name for effect in catalogue.effects] == ["frost", "neon", "comic"]
    assert catalogue["frost"].title == "Frosted glass"
    assert catalogue["neon"].title == "Neon"
    assert catalogue["neon"].category == "test"
    assert all(effect.thumbnail for effect in catalogue.effects)
    assert catalogue["neon"].prompt == f"{catalogue['neon'].tag} Do neon" == report["prompts"]["neon"]
    assert catalogue.sigmas == run.distill.objective.sigmas
    assert catalogue.training["cycles"] == 6
    assert all(up.dtype == torch.bfloat16 and up.abs().sum() > 0 for up in weights.up.values())
    kept = json.loads((run.output / "report.json").read_text())
    assert kept["losses"]["fm"]["cycle"][-1] <= 5
    assert len(kept["losses"]["bs"]["loss"]) == 6
    assert kept["tags"]["chosen_tags"]["max"] <= 1
    assert (run.output / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert (run.output / "similarity.png").read_bytes().startswith(b"\x89PNG")


def test_no_picture_of_the_user_is_in_the_file_unless_asked_for(project: Any, host: Any) -> None:
    whole(project, host)
    run = read_run(project.write())
    assert not any(effect.thumbnail for effect in read_catalogue(run.collection).effects)


@pytest.mark.parametrize("asked", [False, True])
def test_pictures_that_a_collection_has_are_kept(project: Any, host: Any, asked: bool) -> None:
    project.settings["thumbnails"] = asked
    run = read_run(project.write())
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    run = replace(run, kept={"frost": (red, blue)})
    with DistillationRun(run, host) as job:
        job.prepare()
        for _ in job.train():
            pass
        for thumbnails in (False, True):  # half-way, and at the end
            job.finish(thumbnails)
            catalogue = read_catalogue(run.collection)
            kept = catalogue["frost"].thumbnail
            assert kept is not None
            left, right = pair_of(kept, "it")
            assert left is not None
            assert left.getpixel((9, 9))[0] > 200  # type: ignore[index]
            assert right.getpixel((9, 9))[2] > 200  # type: ignore[index]
            assert bool(catalogue["neon"].thumbnail) == (asked and thumbnails)


def test_previews_are_comparable_and_change_no_training(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.lists["data"] = project.lists["data"][:1] + project.lists["data"][3:]
    whole(project, host)
    plain = shared(project, host)
    project.settings["output"] = "previewed"
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare(previewed=["frost", "neon"])
        # its text encoder may take the place of the model on the device
        for encoder in ("encode_text", "encode_image"):
            monkeypatch.delattr(type(host), encoder)
        shown = dict(job.shown())
        first = job.preview(["neon", "frost"])
        for _ in job.train():
            pass
        again, last = dict(job.shown()), job.preview(["neon", "frost"])
        job.finish()
    assert list(shown) == ["frost", "neon"]
    assert torch.equal(shown["frost"][0], shown["neon"][0])
    for name in shown:
        assert all(map(torch.equal, shown[name], again[name]))
    assert not any(map(torch.equal, first, last))
    assert same(shared(project, host), plain)


def test_the_lent_model_is_left_as_it_was(project: Any, host: Any) -> None:
    before = {name: tensor.clone() for name, tensor in host.transformer.state_dict().items()}
    whole(project, host)
    after = host.transformer.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_hooks for module in host.transformer.modules())


def test_a_resumed_run_ends_as_an_uninterrupted_one(project: Any, host: Any) -> None:
    asked, most = [0], [10**9]

    def half_way() -> bool:
        asked[0] += 1
        return asked[0] > most[0]

    whole(project, host, cancelled=half_way)
    straight = shared(project, host)
    losses = json.loads((project.folder / "out" / "report.json").read_text())["losses"]
    project.settings["output"] = "out2"
    asked[0], most[0] = 0, 2 * asked[0] // 3  # inside a cycle
    report = whole(project, host, cancelled=half_way)
    assert 0 < report["training"]["cycles"] < 6
    resumed = whole(project, host, resume=True)
    assert resumed["training"]["cycles"] == 6
    assert same(shared(project, host), straight)
    assert resumed["losses"] == losses


def test_losses_after_the_state_are_dropped_on_resume(project: Any, host: Any) -> None:
    # A kill between the two files of one save.
    whole(project, host)
    path = project.folder / "out" / "progress.json"
    content = json.loads(path.read_text())
    for line in content["losses"].values():
        line["cycle"].append(6)
        line["loss"].append(99.0)
    path.write_text(json.dumps(content))
    project.settings["distill"]["cycles"] = 7
    report = whole(project, host, resume=True)
    assert report["losses"]["bs"]["cycle"] == list(range(7))
    assert 99.0 not in report["losses"]["bs"]["loss"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_a_lost_curve_does_not_stop_a_resume(project: Any, host: Any, damage: Callable[[Path], None]) -> None:
    whole(project, host)
    damage(project.folder / "out" / "progress.json")
    project.settings["distill"]["cycles"] = 7
    assert whole(project, host, resume=True)["losses"]["bs"]["cycle"] == [6]


@pytest.mark.parametrize(("anchor", "kept"), [("path", 3), ("image", 0)])
def test_the_ways_to_teacher_images_are_kept_for_the_anchor(
    project: Any, host: Any, anchor: str, kept: int
) -> None:
    project.settings["distill"]["objective"] = {"anchor": anchor}
    project.lists["data"][0]["base_pred_image"] = project.picture("made by the user.png")
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
        samples = [one for own in job.trainer.lessons.effects.values() for one in own]
    states = [0 if sample.path is None else len(sample.path.states) for sample in samples]
    assert states == [0, *[kept] * 5]  # 3 of its 3 steps; the user's image has no way


def test_teacher_images_made_before_a_cancel_are_not_made_again(project: Any, host: Any) -> None:
    made: list[int] = []
    run = read_run(project.write())
    job = DistillationRun(run, host, lambda: len(made) >= 4)
    with job, pytest.raises(Cancelled, match="those made are kept"):
        job.prepare(lambda phase, done, total: made.append(done))
    assert len(list((run.output / "teacher_images").glob("*.safetensors"))) == 4
    host.evaluations = 0
    with DistillationRun(run, host) as job:
        job.prepare()
    assert host.evaluations == 2 * 3 * 2  # two images left, three guided steps


def test_a_run_cancelled_before_its_first_cycle_can_be_resumed(project: Any, host: Any) -> None:
    stop = [False]
    with DistillationRun(read_run(project.write()), host, lambda: stop[0]) as job:
        job.prepare()
        stop[0] = True
        with pytest.raises(Cancelled):
            next(job.train())
    assert whole(project, host, resume=True)["training"]["cycles"] == 6


def test_a_consumer_that_walks_away_leaves_a_state(project: Any, host: Any) -> None:
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
        records = job.train()
        next(records)
        records.close()  # type: ignore[attr-defined]
    assert whole(project, host, resume=True)["losses"]["bs"]["cycle"] == list(range(6))


def test_a_diverged_run_keeps_its_last_good_state(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    velocity = host.velocity
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
        records = job.train()
        next(records)
        monkeypatch.setattr(host, "velocity", lambda *a: velocity(*a) * torch.nan)
        job.trainer.distiller.velocity = host.velocity
        with pytest.raises(DivergedError):
            for _ in records:
                pass
        job.trainer.distiller.velocity = velocity
        monkeypatch.undo()
        job.finish()
    assert all(tensor.isfinite().all() for tensor in shared(project, host).up.values())


def drop_teacher(project: Any) -> None:
    project.lists["effects"].pop(1)


def drop_pictures(project: Any) -> None:
    project.lists["data"] = [row for row in project.lists["data"] if row["lora_name"] != "neon"]


def duplicate(project: Any) -> None:
    project.lists["effects"].append(project.lists["effects"][0])


def remove_teacher_file(project: Any) -> None:
    (project.folder / "neon.safetensors").unlink()


def truncate_teacher_file(project: Any) -> None:
    path = project.folder / "neon.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def empty_picture(project: Any) -> None:
    (project.folder / "source1.png").write_bytes(b"")


def text_as_picture(project: Any) -> None:
    (project.folder / "source1.png").write_text("not a picture")


def truncated_picture(project: Any) -> None:
    path = project.folder / "source1.png"
    path.write_bytes(path.read_bytes()[:-200])


def other_proportions(project: Any) -> None:
    project.lists["data"][0]["base_pred_image"] = project.picture("made.png", (8, 12))


def smaller_result(project: Any) -> None:
    project.lists["data"][0]["base_pred_image"] = project.picture("made.png", (3, 2))


def unknown_title(project: Any) -> None:
    project.settings["titles"] = {"froost": "Frost"}


def same_file_name(project: Any) -> None:
    project.lists["effects"][1]["lora_name"] = "Frost"
    for row in project.lists["data"]:
        row["lora_name"] = row["lora_name"].replace("neon", "Frost")


def same_tag(project: Any) -> None:
    for row in project.lists["effects"]:
        row["recaption_prompt_with_trigword"] = f"make it {row['lora_name']}"


def empty_data(project: Any) -> None:
    project.lists["data"] = []


def unknown_target(project: Any) -> None:
    project.settings["distill"]["targets"] = ["to_q"]


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (drop_teacher, CollectionError, r"data\.jsonl:3: lora_name: 'neon' is not in the effects list"),
        (drop_pictures, DataError, "effect 'neon' has no source image; add some"),
        (duplicate, CollectionError, r"effects\.jsonl:4: lora_name: 'frost' is in line 1 already"),
        (
            remove_teacher_file,
            CollectionError,
            r"effects\.jsonl:2: lora_path: .*neon\.safetensors.*no teacher",
        ),
        (truncate_teacher_file, CollectionError, r"neon\.safetensors"),
        (empty_picture, ValueError, r"source1\.png"),
        (text_as_picture, ValueError, r"source1\.png"),
        (truncated_picture, ValueError, r"source1\.png"),
        (other_proportions, DataError, r"12 x 8 pixels but its result .*made\.png 8 x 12: a pair must"),
        (smaller_result, DataError, r"made\.png 3 x 2: a pair must"),
        (unknown_title, ConfigError, "titles.froost: no effect of that name; did you mean 'frost'"),
        (same_file_name, CollectionError, "effects 1 and 2 have the same name 'frost'; rename one"),
        (same_tag, DataError, "effects 'frost' and 'neon' have the same tag 'make'"),
        (empty_data, CollectionError, r"data\.jsonl: the list is empty"),
        (unknown_target, ValueError, "targets: no Linear of Net is named .to_q.; there are, say, "),
    ],
)
def test_bad_input_is_named_before_the_first_cycle(
    project: Any, host: Any, damage: Callable[[Any], None], kind: type[Exception], message: str
) -> None:
    damage(project)
    with pytest.raises(kind, match=message), DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
    assert not list((project.folder / "out").glob("*.safetensors"))


def test_a_few_step_file_that_goes_away_costs_no_cycle(project: Any, host: Any) -> None:
    shutil.copy(project.folder / "comic.safetensors", project.folder / "fast.safetensors")
    project.settings["few_step"] = "fast.safetensors"
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
        (project.folder / "fast.safetensors").unlink()
        assert len(list(job.train())) == job.run.distill.cycles
    assert job.run.checkpoint.is_file()


def test_a_few_step_lora_below_the_student_is_in_the_collection(project: Any, host: Any) -> None:
    project.settings["few_step"] = "comic.safetensors"
    whole(project, host)
    run = read_run(project.write())
    weights, catalogue = shared(project, host), read_catalogue(run.collection)
    below = read_lora(project.folder / "comic.safetensors", linear_shapes(host.transformer))
    assert catalogue.training["few_step"] == "comic.safetensors"
    assert catalogue.training["rank"] == run.distill.rank + catalogue.training["few_step_rank"]
    assert catalogue.training["few_step_rank"] == 3
    for path, a in below.down.items():
        assert torch.equal(weights.down[path][-3:], a.bfloat16())
    project.settings["few_step"] = "neon.safetensors"
    with pytest.raises(CheckpointError, match="another few_step LoRA"):
        whole(project, host, resume=True)
    project.settings["few_step"] = "none.safetensors"
    with pytest.raises(CollectionError, match=r"none\.safetensors"):
        whole(project, host)
