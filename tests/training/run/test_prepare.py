"""Lists become lessons: nothing is encoded twice, and captions stay what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from collectionlora.collection.jsonl import read_effect_data, read_effects, read_general_data
from collectionlora.training import prepare
from collectionlora.training.captions import CaptionError, VlmEndpoint
from collectionlora.training.run import DistillationRun, read_run
from collectionlora.training.trainer import Cancelled


def lists(project: Any) -> tuple[dict[str, Any], list[Any], list[Any]]:
    project.write()
    effects = {effect.lora_name: effect for effect in read_effects(project.folder / "effects.jsonl")}
    data = read_effect_data(project.folder / "data.jsonl", effects)
    return effects, data, read_general_data(project.folder / "general.jsonl")


def prompts(project: Any, host: Any, endpoint: VlmEndpoint | None = None) -> Any:
    effects, data, _ = lists(project)
    pictures = [
        prepare.Pictures(picture.image, picture.source, picture.source)
        for picture in prepare.read_pictures(host, data)
    ]
    remembered = project.folder / "out" / "captions.json"
    return prepare.choose_prompts(host, effects, data, pictures, endpoint, remembered, 4, 0)


def test_a_picture_of_many_effects_is_read_once(project: Any, host: Any) -> None:
    effects, data, general = lists(project)
    pictures = prepare.read_pictures(host, data)
    assert len(pictures) == 6
    assert len(host.pictures_read) == 2
    words = {name: prepare.EffectPrompts(name, name, name) for name in effects}
    lessons = prepare.encode_lessons(host, words, data, pictures, general)
    assert len(host.pictures_read) == 2
    assert [len(samples) for samples in lessons.effects.values()] == [2, 2, 2]
    assert [sample.effect for sample in lessons.general] == [None, None]


def test_a_result_that_the_list_names_is_the_target(project: Any, host: Any) -> None:
    project.lists["data"][0]["base_pred_image"] = project.picture("made.png", (24, 16), seed=1)
    _, data, _ = lists(project)
    first, second = prepare.read_pictures(host, data)[:2]
    assert first.target is not None
    assert torch.equal(first.target, host.encode_image(host.read_image(project.folder / "made.png")[None])[0])
    assert second.target is None


def test_where_the_encoder_sees_the_image_each_pair_is_encoded_with_its_own(project: Any, host: Any) -> None:
    seen = []

    def encode(words: Any, image: Any) -> Any:
        seen.append(image)
        return [torch.full((2, 3), float(image.mean())) for _ in words]

    host.text_sees_image, host.encode_text = True, encode
    effects, data, general = lists(project)
    pictures = prepare.read_pictures(host, data)
    words = {name: prepare.EffectPrompts(name, name, name) for name in effects}
    lessons = prepare.encode_lessons(host, words, data, pictures, general)
    assert all(image is not None for image in seen)
    first, second = lessons.effects["frost"]
    assert not torch.equal(first.student, second.student)


def test_the_lists_own_words_are_taken_first(project: Any, host: Any) -> None:
    project.lists["effects"][0]["recaption_prompt"] = "a frosty window"
    project.lists["effects"][1]["recaption_prompt_with_trigword"] = "<glow> neon tubes"
    chosen, report = prompts(project, host)
    assert chosen["frost"].student == f"{report.tags['frost']} a frosty window"
    assert chosen["neon"] == prepare.EffectPrompts("<glow>", "<glow> neon tubes", "Do neon.")
    assert chosen["comic"].student == f"{report.tags['comic']} Do comic"


def test_an_endpoint_is_asked_once_for_each_effect(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(prompt: str, pairs: Any, *_: Any) -> str:
        assert len(pairs) == 2
        asked.append(prompt)
        return f"answer {len(asked)}"

    monkeypatch.setattr(prepare, "caption_effect", answer)
    project.lists["effects"][0]["recaption_prompt"] = "a frosty window"
    endpoint = VlmEndpoint("http://localhost:1", "model")
    first, _ = prompts(project, host, endpoint)
    again, _ = prompts(project, host, endpoint)
    assert asked == ["Do neon.", "Do comic."]
    assert again == first
    prompts(project, host, VlmEndpoint("http://localhost:1", "another model"))
    assert len(asked) == 4


def test_answers_before_a_failure_are_kept(project: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(prompt: str, *_: Any) -> str:
        asked.append(prompt)
        if len(asked) == 2:
            raise CaptionError("gone")
        return "an answer"

    monkeypatch.setattr(prepare, "caption_effect", answer)
    endpoint = VlmEndpoint("http://localhost:1", "model")
    with pytest.raises(CaptionError, match="gone"):
        prompts(project, host, endpoint)
    prompts(project, host, endpoint)
    assert asked == ["Do frost.", "Do neon.", "Do neon.", "Do comic."]


def test_reading_and_encoding_can_be_cancelled(project: Any, host: Any) -> None:
    _, data, general = lists(project)
    with pytest.raises(Cancelled):
        prepare.read_pictures(host, data, lambda: True)
    words = {name: prepare.EffectPrompts(name, name, name) for name in ("frost", "neon", "comic")}
    pictures = prepare.read_pictures(host, data)
    with pytest.raises(Cancelled):
        prepare.encode_lessons(host, words, data, pictures, general, lambda: True)


@pytest.mark.parametrize("tags", ["chosen", "random", "none"])
def test_tags_can_be_chosen_drawn_or_left_out(project: Any, host: Any, tags: str) -> None:
    effects, data, _ = lists(project)
    pictures = [
        prepare.Pictures(picture.image, picture.source, picture.source)
        for picture in prepare.read_pictures(host, data)
    ]
    remembered = project.folder / "out" / "captions.json"
    made, report = prepare.choose_prompts(
        host, effects, data, pictures, None, remembered, candidates=4, seed=0, tags=tags
    )
    drawn = {"chosen": report.tags, "random": report.random_tags, "none": {name: name for name in effects}}
    for name, words in made.items():
        assert words.tag == drawn[tags][name]
        assert (
            words.student == report.captions[name] if tags == "none" else words.student.startswith(words.tag)
        )


def test_previews_share_the_source_that_most_effects_have(project: Any) -> None:
    own = project.picture("own.png")
    rows = project.lists["data"]
    project.lists["data"] = [{**row, "source_image": own} for row in rows[:1]] + rows[3:]
    effects, samples, _ = lists(project)
    found = prepare.on_one_source(list(effects), effects, samples)
    assert list(found) == list(effects)
    assert {sample.source_image.name for sample in found.values()} == {"source1.png"}
    assert found["neon"] in samples
    assert found["frost"] not in samples  # it has another source only, and gets this one for its preview
    assert prepare.on_one_source([], effects, samples) == {}


@pytest.mark.parametrize("cycles", [3, 4])
def test_teacher_images_that_nothing_learns_from_are_made_for_previews_alone(
    cycles: int, project: Any, host: Any
) -> None:
    project.settings["distill"] |= {"imitation_cycles": 3, "cycles": cycles}
    project.settings["few_step"] = "comic.safetensors"
    run = read_run(project.write())
    with DistillationRun(run, host) as job:
        job.prepare(previewed=["neon"])
        assert [name for name, _ in job.shown()] == ["neon"]
        for _ in job.train():
            pass
    assert len(list((run.output / "teacher_images").iterdir())) == (1 if cycles == 3 else 6)
