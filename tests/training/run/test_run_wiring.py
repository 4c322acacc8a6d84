"""Every text, weight and picture of a run reaches the place that it is meant for."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from collectionlora.collection.layouts import read_lora
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.training import prepare, teacher_images
from collectionlora.training import run as run_module
from collectionlora.training.bank import TeacherBank
from collectionlora.training.captions import VlmEndpoint
from collectionlora.training.checkpoint import load_state
from collectionlora.training.flow import few_step_sigmas
from collectionlora.training.lora import linear_shapes
from collectionlora.training.randomness import generator, noise_like
from collectionlora.training.roles import Roles
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import read_run
from collectionlora.training.sampling import apply_collection, sample_teachers


def test_teachers_go_eulers_way_guided(tiny: Any, host: Any, tmp_path: Any) -> None:
    files = tiny.write_teachers(tmp_path)
    bank = TeacherBank(files, linear_shapes(host.transformer))
    text, empty = (host.encode_text([w], None)[0][None] for w in ("neon", ""))
    source = torch.ones(1, 2, 2, 3)
    found: dict[bool, torch.Tensor] = {}
    with Roles(host.transformer, {}) as roles:
        for fresh in (False, True):
            found[fresh] = sample_teachers(
                host, roles, bank, ["neon"], text, empty, source, [generator(0)], 3, 2.0, fresh
            )
        stack, draws = bank.stack(["neon"]), [generator(0)]
        with torch.no_grad(), roles.use_teachers(stack, stack.index(["neon"])):
            x = {False: noise_like(source, draws)}
            x[True] = x[False]
            sigmas = few_step_sigmas(3)
            for now, then in itertools.pairwise(sigmas):
                v = {}
                for fresh in x:
                    cond, uncond = (
                        host.velocity(x[fresh], torch.tensor([now]), t, source) for t in (text, empty)
                    )
                    v[fresh] = cond + 2.0 * (cond - uncond)
                x[False] = x[False] + (then - now) * v[False]
                x0 = x[True] - now * v[True]
                x[True] = (1 - then) * x0 + (then * noise_like(x0, draws) if then else 0)
    for fresh in found:
        torch.testing.assert_close(found[fresh], x[fresh], atol=1e-5, rtol=1e-4)


def test_a_collection_draws_its_noise_afresh(tiny: Any, host: Any, tmp_path: Any) -> None:
    weights = read_lora(tiny.write_teachers(tmp_path)["neon"], linear_shapes(host.transformer))
    image = torch.rand(1, 3, 4, 6, generator=generator(0, "image"))
    draws = generator(0)
    apply_collection(host, weights, ["a"], image, [draws], few_step_sigmas(4))
    taken = generator(0)
    for _ in range(4):
        torch.randn(2, 2, 3, generator=taken)
    assert torch.equal(draws.get_state(), taken.get_state())


def test_each_text_goes_where_it_belongs(project: Any, host: Any) -> None:
    project.settings["targets"] |= {"guidance": 2.0}
    project.lists["data"][0]["instruction"] = "lightly"
    seen: list[Any] = []
    with DistillationRun(read_run(project.write()), host) as job:
        make = job._maker.make
        job._maker.make = lambda roles, wanted, c: (seen.extend(wanted), make(roles, wanted, c))[1]  # type: ignore
        job.prepare()
        samples = job.trainer.lessons.effects["frost"]
    asked, empty = host.encode_text(["lightly", ""], None)
    assert (seen[0].prompt, seen[1].prompt) == ("lightly", "do it")
    assert torch.equal(seen[0].text, asked)
    assert torch.equal(seen[0].empty, empty)
    assert torch.equal(samples[0].teacher, asked)
    assert torch.equal(samples[0].empty, empty)


def test_target_maker_passes_both_texts(project: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    plain = teacher_images.sample_teachers
    monkeypatch.setattr(
        teacher_images, "sample_teachers", lambda *a, **k: (given.append(a), plain(*a, **k))[1]
    )
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
    asked, empty = host.encode_text(["do it", ""], None)
    for call in given:
        assert all(torch.equal(one, asked) for one in call[4])
        assert all(torch.equal(one, empty) for one in call[5])
    other = [draw.initial_seed() for call in given for draw in call[7]]
    project.settings["distill"]["seed"] = 1
    given.clear()
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
    assert given  # they are other images
    assert not {draw.initial_seed() for call in given for draw in call[7]} & {*other}


def test_a_preview_is_of_the_whole_collection(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.settings["few_step"] = "comic.safetensors"
    shown: list[LoraWeights] = []
    monkeypatch.setattr(run_module, "apply_to_each", lambda h, weights, *_: shown.append(weights) or [])
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare(previewed=["frost"])
        job.preview(["frost"])
        assert shown[0].rank("enter") == job.run.distill.rank + 3


@pytest.mark.parametrize("fake_base", ["base", "teacher"])
def test_over_teachers_the_fake_score_of_an_extension_starts_blank(
    fake_base: str, project: Any, host: Any
) -> None:
    project.settings["distill"]["objective"] = {"fake_base": fake_base}
    shapes = linear_shapes(host.transformer)
    whole = read_lora(project.folder / "neon.safetensors", shapes)
    first = LoraWeights(
        {p: whole.down[p] for p in ("enter", "middle")},
        {p: whole.up[p] for p in ("enter", "middle")},
        {p: whole.alpha[p] for p in ("enter", "middle")},
    )
    job = DistillationRun(read_run(project.write()), host, first=first)
    started = any(up.any() for up in job.adapters["fake"].up.values())
    assert started == (fake_base == "base")


def test_the_state_is_saved_on_the_way(project: Any, host: Any) -> None:
    run = read_run(project.write())  # save_every = 2
    with DistillationRun(run, host) as job:
        job.prepare()
        for record in job.train():
            saved = load_state(run.checkpoint, plain=True)["cycle"] if run.checkpoint.exists() else 0
            assert saved == (record.cycle + 1) // 2 * 2
            if saved:
                progress = json.loads((run.output / "progress.json").read_text())
                assert progress["losses"]["bs"]["cycle"][-1] == saved - 1


def test_progress_is_there_before_its_state(project: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(project.write())
    with DistillationRun(run, host) as job:
        job.prepare()
        monkeypatch.setattr(job.trainer, "save", lambda path: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            list(job.train())
    assert (run.output / "progress.json").exists()


def test_an_endpoint_sees_pairs_of_the_effect_source_first(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(prepare, "caption_vlm", lambda _, pairs, prompt: seen.append(pairs) or "an answer")
    project.settings["distill"]["imitation_cycles"] = 0
    names = [row["lora_name"] for row in project.lists["data"]]
    run = replace(read_run(project.write()), captions=VlmEndpoint("http://localhost:1", "m"))
    pictures = prepare.read_pictures(host, run.lists.samples)
    pictures = [
        replace(p, target=torch.full_like(p.source, names.index(n) / 8)) for n, p in zip(names, pictures)
    ]
    prepare.choose_prompts(
        host, run.lists.effects, run.lists.samples, pictures, run.captions, run.output / "captions.json", 2, 0
    )
    for name, pairs in zip(run.lists.effects, seen):
        result = host.decode(torch.full((1, 2, 2, 3), names.index(name) / 8))[0]
        assert all(torch.equal(made, result) for _, made in pairs)


def test_an_adapter_starts_by_the_runs_seed(project: Any, host: Any) -> None:
    starts = []
    for seed in (0, 5):
        project.settings["distill"]["seed"] = seed
        starts.append(DistillationRun(read_run(project.write()), host).adapters["student"].down["enter"])
    assert not torch.equal(*starts)
