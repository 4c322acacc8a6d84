"""Lists become lessons: nothing is encoded twice, and captions stay what they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from collectionlora.collection.jsonl import read_effect_data, read_effects, read_general_data
from collectionlora.training import encoding, prepare
from collectionlora.training.captions import CaptionError, VlmEndpoint
from collectionlora.training.errors import Cancelled
from collectionlora.training.pictures import fitted, read_picture
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import Lists, read_run


def lists(project: Any) -> tuple[dict[str, Any], list[Any], list[Any]]:
    project.write()
    effects = {effect.lora_name: effect for effect in read_effects(project.folder / "effects.jsonl")}
    data = read_effect_data(project.folder / "data.jsonl", effects)
    return effects, data, read_general_data(project.folder / "general.jsonl")


def prompts(project: Any, host: Any, endpoint: VlmEndpoint | None = None, **more: Any) -> Any:
    effects, data, _ = lists(project)
    pictures = [
        prepare.Pictures(picture.pixels, picture.source, picture.source)
        for picture in prepare.read_pictures(host, data)
    ]
    remembered = project.folder / "out" / "captions.json"
    return prepare.choose_prompts(host, effects, data, pictures, endpoint, remembered, 4, 0, **more)


def test_a_picture_of_many_effects_is_read_once(project: Any, host: Any) -> None:
    effects, data, general = lists(project)
    pictures = prepare.read_pictures(host, data)
    assert len(pictures) == 6
    assert len(host.pictures_read) == 2
    words = {name: prepare.EffectPrompts(name, name) for name in effects}
    others = encoding.encode_general(host, general, data, pictures)
    lessons = encoding.encode_lessons(encoding.prompt_encoder(host), words, data, pictures, others)
    assert len(host.pictures_read) == 2
    assert [len(samples) for samples in lessons.effects.values()] == [2, 2, 2]
    assert [sample.effect for sample in lessons.general] == [None, None]


def test_pictures_for_an_effect_that_has_no_teacher_are_named(project: Any) -> None:
    effects, data, _ = lists(project)
    with pytest.raises(prepare.DataError, match="there are pictures for 'comic', which is none of the teach"):
        prepare.check_lists([name for name in effects if name != "comic"], data, False)


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
    words = {name: prepare.EffectPrompts(name, name) for name in effects}
    others = encoding.encode_general(host, general, data, pictures)
    lessons = encoding.encode_lessons(encoding.prompt_encoder(host), words, data, pictures, others)
    assert all(image is not None for image in seen)
    first, second = lessons.effects["frost"]
    assert not torch.equal(first.student, second.student)


def test_a_sample_is_asked_of_its_teacher_in_the_words_of_its_line(project: Any, host: Any) -> None:
    """As released."""
    effects, data, _ = lists(project)
    data[0] = replace(data[0], instruction="Do frost, but lightly.")
    pictures = prepare.read_pictures(host, data)
    words = {name: prepare.EffectPrompts(name, name) for name in effects}
    lessons = encoding.encode_lessons(encoding.prompt_encoder(host), words, data, pictures, [])
    first, second = lessons.effects["frost"]
    asked = host.encode_text(["Do frost, but lightly.", "do it"], None)
    assert torch.equal(first.teacher, asked[0])
    assert torch.equal(second.teacher, asked[1])
    assert torch.equal(first.student, second.student)
    changed, plain = (Lists(effects, some).teacher_prompts() for some in (data, lists(project)[1]))
    assert {name for name in changed if changed[name] != plain[name]} == {"frost"}
    assert plain == dict.fromkeys(effects, "do it")


def test_the_lists_own_words_are_taken_first(project: Any, host: Any) -> None:
    project.lists["effects"][0]["recaption_prompt"] = "a frosty window"
    project.lists["effects"][1]["recaption_prompt_with_trigword"] = "<glow> neon tubes"
    chosen, report = prompts(project, host)
    assert report.tags["neon"] == report.random_tags["neon"] == "<glow>"
    assert report.captions["neon"] == "neon tubes"
    assert chosen["frost"].student == f"{report.tags['frost']} a frosty window"
    assert chosen["neon"] == prepare.EffectPrompts("<glow>", "<glow> neon tubes")
    assert chosen["comic"].student == f"{report.tags['comic']} Do comic"


def test_an_endpoint_is_asked_once_for_each_effect(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(_: Any, pairs: Any, prompt: str) -> str:
        assert len(pairs) == 2
        asked.append(prompt)
        return f"answer {len(asked)}"

    monkeypatch.setattr(prepare, "caption_vlm", answer)
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

    def answer(_: Any, __: Any, prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 2:
            raise CaptionError("gone")
        return "an answer"

    monkeypatch.setattr(prepare, "caption_vlm", answer)
    endpoint = VlmEndpoint("http://localhost:1", "model")
    with pytest.raises(CaptionError, match="gone"):
        prompts(project, host, endpoint)
    prompts(project, host, endpoint)
    assert asked == ["Do frost.", "Do neon.", "Do neon.", "Do comic."]


def test_reading_and_encoding_can_be_cancelled(project: Any, host: Any) -> None:
    effects, data, general = lists(project)
    with pytest.raises(Cancelled):
        prepare.read_pictures(host, data, lambda: True)
    words = {name: prepare.EffectPrompts(name, name) for name in ("frost", "neon", "comic")}
    pictures = prepare.read_pictures(host, data)
    with pytest.raises(Cancelled):
        encoding.encode_general(host, general, data, pictures, lambda: True)
    with pytest.raises(Cancelled):
        encoding.encode_lessons(encoding.prompt_encoder(host), words, data, pictures, [], lambda: True)
    remembered = project.folder / "out" / "captions.json"
    with pytest.raises(Cancelled):
        prepare.choose_prompts(host, effects, data, pictures, None, remembered, 4, 0, cancelled=lambda: True)


@pytest.mark.parametrize("tags", ["chosen", "random", "none"])
def test_tags_can_be_chosen_drawn_or_left_out(project: Any, host: Any, tags: str) -> None:
    effects, data, _ = lists(project)
    pictures = [
        prepare.Pictures(picture.pixels, picture.source, picture.source)
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


def test_a_result_of_nearly_the_same_proportions_takes_the_size_of_its_source(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "read_image", lambda path: fitted(read_picture(path), 64, 2))
    project.lists["data"][0] |= {
        "source_image": project.picture("source.png", (85, 64)),
        "base_pred_image": project.picture("made.png", (74, 55)),
    }
    halves = Image.new("RGB", (74, 55), "red")
    halves.paste("blue", (37, 0, 74, 55))
    halves.save(project.folder / "made.png")
    effects, data, _ = lists(project)
    assert host.read_image(data[0].source_image).shape == (3, 48, 64)
    assert host.read_image(project.folder / "made.png").shape == (3, 46, 64)
    pictures = prepare.read_pictures(host, data)
    target = pictures[0].target
    assert target is not None
    assert target.shape == pictures[0].source.shape
    assert (target[0, :, :15] > 1.9).all()
    assert (target[0, :, 17:] < -1.9).all()
    words = {name: prepare.EffectPrompts(name, name) for name in effects}
    encoding.encode_lessons(encoding.prompt_encoder(host), words, data, pictures, [])


SOURCES = 8


def with_an_encoder_that_sees(project: Any, host: Any) -> list[str]:
    """Enough sources for it; returns the prompts that it will have been asked for."""
    asked: list[str] = []

    def encode(words: Any, image: Any) -> Any:
        asked.extend(words)
        return [torch.randn(host.shape, generator=torch.Generator().manual_seed(len(word))) for word in words]

    host.text_sees_image, host.encode_text = True, encode
    project.lists["data"] += [
        {**project.lists["data"][0], "source_image": project.picture(f"more{i}.png")} for i in range(6)
    ]
    return asked


@pytest.mark.parametrize(("tags", "encoded"), [("chosen", 1 + 2 * 4), ("random", 3), ("none", 3)])
def test_only_tags_that_can_be_chosen_are_measured(project: Any, host: Any, tags: str, encoded: int) -> None:
    asked = with_an_encoder_that_sees(project, host)
    project.lists["effects"][1]["recaption_prompt_with_trigword"] = "<glow> neon tubes"
    told: list[tuple[int, ...]] = []
    made, report = prompts(project, host, tags=tags, progress=lambda *one: told.append(one))
    assert len(asked) == SOURCES * (encoded + 3)  # and the captions alone
    assert told == [(i + 1, encoded + 3) for i in range(encoded + 3)]
    assert made["neon"].student == "<glow> neon tubes"
    tagged = {name: f"{report.tags[name]} {report.captions[name]}".strip() for name in report.names}
    assert tagged == {name: words.student for name, words in made.items()}


def test_tags_are_chosen_once_and_anew_when_anything_they_depend_on_has_changed(
    project: Any, host: Any
) -> None:
    asked = with_an_encoder_that_sees(project, host)
    chosen, report = prompts(project, host)
    searched = len(asked)
    again, kept = prompts(project, host)
    assert again == chosen
    assert len(asked) == searched
    assert (kept.names, kept.captions, kept.tags) == (report.names, report.captions, report.tags)
    torch.testing.assert_close(kept.chosen, report.chosen.float(), atol=1e-4, rtol=0)
    (project.folder / "out" / "tags.json").write_text('{"key": 3')
    assert prompts(project, host)[0] == chosen
    assert len(asked) == 2 * searched
    project.lists["effects"][0]["recaption_prompt"] = "a frosty window"
    assert prompts(project, host)[0] != chosen
    assert len(asked) == 3 * searched
    project.picture("more3.png", seed=1)
    prompts(project, host)
    host.identity = "another encoder"
    prompts(project, host)
    assert len(asked) == 5 * searched


def test_an_endpoint_is_not_asked_for_words_that_the_list_has(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(prepare, "caption_vlm", lambda _, __, prompt: asked.append(prompt) or "an answer")
    project.lists["effects"][0]["recaption_prompt_with_trigword"] = "<ice>"
    project.lists["effects"][1]["recaption_prompt_with_trigword"] = "<glow> neon tubes"
    made, _ = prompts(project, host, VlmEndpoint("http://localhost:1", "model"))
    assert asked == ["Do comic."]
    assert made["frost"] == prepare.EffectPrompts("<ice>", "<ice>")


@pytest.mark.parametrize("seen", [3, 3 * SOURCES])
def test_a_slow_search_for_tags_ends_with_the_forward_it_is_at(project: Any, host: Any, seen: int) -> None:
    asked = with_an_encoder_that_sees(project, host)
    with pytest.raises(Cancelled, match="tags"):
        prompts(project, host, cancelled=lambda: len(asked) >= seen)
    assert len(asked) == seen


def test_prompts_of_teacher_images_are_encoded_no_further_after_a_cancel(project: Any, host: Any) -> None:
    asked = with_an_encoder_that_sees(project, host)
    project.lists["general"] = [{"source_image": "source0.png", "instruction": "blur it"}]
    job = DistillationRun(read_run(project.write()), host, lambda: len(asked) >= 4)
    with job, pytest.raises(Cancelled, match="teacher images"):
        job.prepare()
    assert len(asked) == 4  # two of the general stream, two of the first sample
    assert host.evaluations == 0


def test_a_trigger_is_enough_where_captions_are_asked_for(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "caption_vlm", lambda *_: "an answer")
    project.lists["effects"][0]["prompt"] = "<sks>"
    run = replace(read_run(project.write()), captions=VlmEndpoint("http://localhost:1", "model"))
    with DistillationRun(run, host) as job:
        assert job.prepare().prompts["frost"].student.endswith("> an answer")


def test_no_more_captions_are_asked_for_after_a_cancel(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(prepare, "caption_vlm", lambda *one: asked.append(one) or "an answer")
    run = replace(read_run(project.write()), captions=VlmEndpoint("http://localhost:1", "model"))
    job = DistillationRun(run, host, lambda: len(asked) == 2)
    with job, pytest.raises(Cancelled, match="captions; those that came are kept"):
        job.prepare()
    assert len(asked) == 2


def test_a_long_name_of_a_teacher_is_no_reason_to_refuse_it(project: Any, host: Any) -> None:
    name = "Qwen-Image-Edit-2509-Multiple-Angles-Camera-LoRA-v1-rank32"
    for row in (*project.lists["effects"], *project.lists["data"]):
        row["lora_name"] = row["lora_name"].replace("neon", name)
    phases: list[str] = []
    with DistillationRun(read_run(project.write()), host) as job:
        made = job.prepare(lambda phase, *_: phases.append(phase))
    assert [len(effect.tag) <= 64 for effect in made.catalogue.effects] == [True] * 3
    assert list(dict.fromkeys(phases)) == ["teacher images", "tags"]
