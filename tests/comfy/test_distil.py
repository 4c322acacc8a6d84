"""A user who distils: teachers, pictures, run, save, load, sample; cancel, kill and go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))
from graphs import PICTURES, POCKET, apply_effect, distil, node, plain_sampling

from collectionlora.collection.file import load_collection, read_catalogue
from collectionlora.training.checkpoint import load_state
from collectionlora.training.config import distillation
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import Run, TeacherSampling, read_lists


def folder_of(server: Any, name: str) -> Path:
    path: Path = server.base_directory / "output" / "collectionlora" / name
    return path


def latent(server: Any, outputs: dict[str, Any], name: str) -> torch.Tensor:
    return load_file(server.output_file(outputs[name]["latents"][0]))["latent_tensor"]


@pytest.fixture(scope="module")
def picture(server: Any) -> str:
    shutil.copy(PICTURES[0], server.base_directory / "input" / "photo.webp")
    return "photo.webp"


@pytest.mark.usefixtures("lessons")
def test_distil_save_load_and_sample_in_one_session(server: Any, picture: str) -> None:
    graph = distil("first", cycles=4, distil={"thumbnails": True, "few_step": "pocket (built in)"})
    graph["save"] = node("CollectionLoraSave", collection=["distil", 0], filename="made/first")
    outputs = server.run(graph)
    assert "cycles: 4" in outputs["distil"]["text"][0]
    assert "pictures in the file: 2" in outputs["distil"]["text"][0]
    catalogue = read_catalogue(folder_of(server, "first") / "collection.safetensors")
    assert [effect.name for effect in catalogue.effects] == ["thermal", "sketch"]
    assert all(effect.thumbnail for effect in catalogue.effects)
    assert catalogue.base["name"] == "pocket-qwen-image-edit"
    assert catalogue.training["few_step"] == "few_step.safetensors"

    saved = server.base_directory / "models" / "loras" / "made" / "first.safetensors"
    assert load_collection(saved)[1] == catalogue
    applied = apply_effect(picture, "sketch", load={"file": "made/first.safetensors"})
    outputs = server.run(applied)
    with Image.open(server.output_file(outputs["save"]["images"][0])) as made:
        assert made.size == (128, 128)
    graph["load"] = applied["load"]
    graph["distil"]["inputs"] |= {"name": "second", "extend": ["load", 1]}
    assert "holds few-step sampling already (few_step.safetensors)" in server.error_of(graph)
    graph["distil"]["inputs"] |= {"few_step": "none"}
    graph["settings"]["inputs"] |= {"preset": "imitation", "more": "batch = 2\nbank_ram = 64"}
    server.run(graph)
    weights, again = load_collection(folder_of(server, "second") / "collection.safetensors")
    before, _ = load_collection(saved)
    for key in ("few_step", "few_step_rank", "rank"):
        assert again.training[key] == catalogue.training[key]
    below = again.training["few_step_rank"]
    for path, down in weights.down.items():
        assert torch.equal(down[-below:], before.down[path][-below:])
        assert torch.equal(weights.up[path][:, -below:], before.up[path][:, -below:])
    assert any(
        not torch.equal(up[:, :-below], before.up[path][:, :-below]) for path, up in weights.up.items()
    )
    graph["distil"]["inputs"] |= {"name": "third"}
    more = "batch = 2\nbank_ram = 64\n[objective]\nguidance = 0.0"
    graph["settings"]["inputs"] |= {"preset": "few-steps", "more": more}
    server.run(graph)
    weights, _ = load_collection(folder_of(server, "third") / "collection.safetensors")
    for path, up in weights.up.items():
        assert torch.equal(up[:, :-below], before.up[path][:, :-below])
    assert any(
        not torch.equal(up[:, -below:], before.up[path][:, -below:]) for path, up in weights.up.items()
    )


@pytest.mark.usefixtures("lessons")
def test_a_few_step_lora_and_the_preset_for_it_need_no_teacher_images(server: Any) -> None:
    settings = {"preset": "imitation", "more": "batch = 2\nbank_ram = 64"}
    graph = distil("imitator", cycles=9, settings=settings)
    assert "imitation alone teaches no few steps" in server.error_of(graph)
    graph["distil"]["inputs"] |= {"few_step": "pocket (built in)"}
    assert "cycles: 9" in server.run(graph)["distil"]["text"][0]
    losses = json.loads((folder_of(server, "imitator") / "report.json").read_text())["losses"]
    assert set(losses) == {"imitation", "on_policy"}


@pytest.mark.usefixtures("lessons")
def test_losses_equal_those_of_the_headless_host(server: Any, tmp_path: Path) -> None:
    """The same lists and seeds, once in ComfyUI and once with diffusers' transformer."""
    inputs = server.base_directory / "input"
    rows = [json.loads(line) for line in (inputs / "few.jsonl").read_text().splitlines()]
    for row, result in zip(rows, PICTURES[1:]):
        row["base_pred_image"] = str(result)  # no teacher images: their noise is named by the host's weights
    (inputs / "with_results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    graph = distil("parity", cycles=4, images={"before": "with_results.jsonl"})
    server.run(graph)
    ours = json.loads((folder_of(server, "parity") / "report.json").read_text())

    settings = {
        "batch": 2,
        "micro_batch": 2,
        "warm_cycles": 1,
        "fake_ratio": 1,
        "cycles": 4,
        "rank": 4,
        "alpha": 4.0,
    }
    lists = read_lists(inputs / "two.jsonl", inputs / "with_results.jsonl", POCKET / "general.jsonl")
    run = Run(tmp_path, lists, distill=distillation(settings, "pocket"), targets=TeacherSampling(2, 0.0))
    with DistillationRun(run, PocketHost()) as job:
        job.prepare()
        for _ in job.train():
            pass
    assert ours["losses"].keys() == job.curves.losses.keys() == {"bs", "ts", "fm", "fake"}
    for term, line in job.curves.losses.items():
        assert ours["losses"][term]["cycle"] == line["cycle"]
        assert ours["losses"][term]["loss"] == pytest.approx(line["loss"], rel=1e-4), term


@pytest.mark.usefixtures("lessons")
def test_cancel_keeps_what_was_trained_and_leaves_the_model_as_it_was(
    server: Any,
    start_server: Callable[[], Any],
    run_inside: Callable[..., dict[str, Any]],
    tmp_path: Path,
    picture: str,
) -> None:
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps(distil("cancelled", cycles=500)))
    seen = run_inside("listen.py", server.url, graph, 5)
    assert seen["end"] == "execution_interrupted"
    folder = folder_of(server, "cancelled")
    catalogue = read_catalogue(folder / "collection.safetensors")
    assert 5 <= catalogue.training["cycles"] < 500
    assert load_state(folder / "state.safetensors")["cycle"] == catalogue.training["cycles"]
    assert seen["ours"][-1]["ended"] == "cancelled"
    assert seen["ours"][-1]["kept"] == str(folder / "collection.safetensors")

    trained = latent(server, server.run(plain_sampling(picture)), "save")
    other = start_server()
    shutil.copy(PICTURES[0], other.base_directory / "input" / picture)
    untrained = latent(other, other.run(plain_sampling(picture)), "save")
    assert torch.equal(trained, untrained)

    done = catalogue.training["cycles"]
    graph.write_text(json.dumps(distil("cancelled", cycles=500)))
    again = run_inside("listen.py", server.url, graph, done + 2)
    cycles = [event["cycle"] for event in again["ours"] if "loss" in event]
    assert cycles[0] == done + 1
    story = server.get(f"/collectionlora/run?prompt={again['prompt_id']}")
    for line in (story["losses"]["bs"], story["effects"]["thermal"]):  # the cycles before are there too
        assert line["cycle"][0] < done < line["cycle"][-1]
        assert line["cycle"] == sorted(set(line["cycle"]))
    assert server.error_of(distil("cancelled", cycles=500, settings={"rank": 8})).count("rank = 4") == 1


@pytest.mark.usefixtures("lessons")
def test_a_run_tells_its_page_what_it_does(
    server: Any, run_inside: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps(distil("told", cycles=6)))
    seen = run_inside("listen.py", server.url, graph)
    assert seen["end"] == "execution_success"
    assert seen["kinds"]["preview"] >= 3
    cycles = [event for event in seen["ours"] if event.get("phase") == "cycles"]
    assert [event["cycle"] for event in cycles] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "seconds_left", "memory"} <= event.keys() for event in cycles)
    assert {event["node"] for event in seen["ours"]} == {"distil"}
    assert any("student and fake score" in event.get("plan", "") for event in seen["ours"])
    assert any(event.get("phase") == "teacher images" for event in seen["ours"])
    story = server.get(f"/collectionlora/run?prompt={seen['prompt_id']}")
    assert story["cycle"] == 6
    assert story["losses"]["fm"]["loss"] == [event["loss"]["fm"] for event in cycles]


@pytest.mark.usefixtures("lessons")
def test_a_killed_server_goes_on_where_it_stopped(server: Any, start_server: Callable[..., Any]) -> None:
    whole = server.run(distil("whole", cycles=12))
    assert whole
    first = start_server(server.base_directory)
    prompt = first.queue(distil("killed", cycles=12))
    state = folder_of(first, "killed") / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert prompt
    done = load_state(state)["cycle"]
    assert 0 < done < 12
    second = start_server(server.base_directory)
    second.run(distil("killed", cycles=12))
    found = [load_state(folder_of(server, name) / "state.safetensors") for name in ("whole", "killed")]
    assert found[0]["cycle"] == found[1]["cycle"] == 12
    for name, tensor in found[0]["student"].items():
        assert torch.equal(tensor, found[1]["student"][name]), name


@pytest.mark.usefixtures("lessons")
def test_a_run_that_cannot_go_on_leaves_the_earlier_one_alone(server: Any) -> None:
    server.run(distil("earlier", cycles=2))
    kept = {path.name: path.read_bytes() for path in folder_of(server, "earlier").glob("*.safetensors")}
    inputs = server.base_directory / "input"
    rows = [json.loads(line) for line in (inputs / "two.jsonl").read_text().splitlines()]
    rows[0]["prompt"] = "something else"
    (inputs / "reworded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [json.loads(line) for line in (inputs / "few.jsonl").read_text().splitlines()]
    asked = [
        row | {"instruction": "something else"} if row["lora_name"] == "thermal" else row for row in asked
    ]
    (inputs / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    message = server.error_of(distil("earlier", cycles=4, lists=("reworded.jsonl", "asked.jsonl")))
    assert "effect 'thermal' was taught with the prompt" in message
    assert "start = anew" in message
    now = {path.name: path.read_bytes() for path in folder_of(server, "earlier").glob("*.safetensors")}
    assert now == kept
    images = {path.name for path in (folder_of(server, "earlier") / "teacher_images").iterdir()}
    changes = {"start": "anew", "reference_method": "index_timestep_zero"}
    server.run(distil("earlier", cycles=1, distil=changes))
    training = read_catalogue(folder_of(server, "earlier") / "collection.safetensors").training
    assert (training["reference_method"], training["long_side"]) == ("index_timestep_zero", 128)
    assert images <= {path.name for path in (folder_of(server, "earlier") / "teacher_images").iterdir()}
    aside = folder_of(server, "earlier_2")  # where a run of that name goes on
    assert {path.name: path.read_bytes() for path in aside.glob("*.safetensors")} == kept
    assert {path.name for path in (aside / "teacher_images").iterdir()} == images
    assert (aside / "tags.json").is_file()
    assert load_state(folder_of(server, "earlier") / "state.safetensors")["cycle"] == 1


@pytest.fixture
def failing(
    server: Any, lessons: tuple[str, str], run_inside: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[[str], dict[str, Any]]:
    """A run in `tmp_path` that fails in a way of ``inside/failing.py``: its message, and what was told."""
    lists = [server.base_directory / "input" / name for name in lessons]
    return lambda kind: run_inside("failing.py", *lists, tmp_path, kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("memory", "RuntimeError: out of memory; what was trained is in"), ("numbers", "DivergedError: ")],
)
def test_a_run_that_fails_keeps_what_was_trained_and_says_what_to_do(
    failing: Callable[[str], dict[str, Any]], tmp_path: Path, kind: str, message: str
) -> None:
    failed = failing(kind)
    told = failed["message"]
    assert told.startswith(message)
    assert (failed["told"]["ended"], failed["told"]["kept"]) == (
        told,
        str(tmp_path / "collection.safetensors"),
    )
    assert ("Load the base in fp8" if kind == "memory" else "Lower lr") in told
    assert str(tmp_path / "collection.safetensors") in told
    assert read_catalogue(tmp_path / "collection.safetensors").training["cycles"] >= 2
    assert load_state(tmp_path / "state.safetensors")["cycle"] >= 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [("start", "ConfigError: titles.nothing: no effect"), ("disk", "OSError: no space left")],
)
def test_the_page_hears_of_every_end(
    failing: Callable[[str], dict[str, Any]], kind: str, message: str
) -> None:
    failed = failing(kind)
    assert failed["message"].startswith(message)
    told = failed["told"]
    assert (told["phase"], told["ended"], told["kept"]) == ("ended", failed["message"], None)


def test_previews_are_bounded_and_spread_over_the_run(
    run_inside: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    made = run_inside("many_previews.py", tmp_path)
    assert made["told"] == made["read"] == made["kept"]
    assert (len(made["told"]), made["told"][0], made["told"][-1]) == (32, 0, 990)
    gaps = [later - earlier for earlier, later in zip(made["told"], made["told"][1:])]
    assert max(gaps) <= 80


@pytest.mark.usefixtures("lessons")
def test_effects_are_added_to_a_finished_collection(server: Any) -> None:
    one = (server.base_directory / "input" / "two.jsonl").read_text().splitlines()[0]
    (server.base_directory / "input" / "one.jsonl").write_text(one + "\n")
    rows = (server.base_directory / "input" / "few.jsonl").read_text().splitlines()
    (server.base_directory / "input" / "one_data.jsonl").write_text("\n".join(rows[:2]) + "\n")
    graph = distil("base", 2, ("one.jsonl", "one_data.jsonl"), distil={"thumbnails": True})
    more = distil("extended", cycles=2, distil={"extend": ["distil", 0]})
    graph |= {f"more_{key}": value for key, value in more.items()}
    for key in more:
        for name, value in graph[f"more_{key}"]["inputs"].items():
            if isinstance(value, list) and name != "extend":
                graph[f"more_{key}"]["inputs"][name] = [f"more_{value[0]}", value[1]]
    prompt = server.queue(graph)
    assert server.wait(prompt)["status"]["status_str"] == "success"
    for key, name in (("distil", "base"), ("more_distil", "extended")):  # two runs of one prompt
        story = server.get(f"/collectionlora/run?prompt={prompt}&node={key}")
        assert (story["name"], story["node"], story["cycle"]) == (name, key, 2)
    before, after = (
        read_catalogue(folder_of(server, name) / "collection.safetensors") for name in ("base", "extended")
    )
    assert [effect.name for effect in after.effects] == ["thermal", "sketch"]
    assert after["thermal"].prompt == before["thermal"].prompt
    assert after["thermal"].tag == before["thermal"].tag
    assert before["thermal"].thumbnail
    assert [bool(effect.thumbnail) for effect in after.effects] == [True, False]  # only that it had before
    graph["more_teachers"]["inputs"]["source"] = "other.jsonl"
    lines = (server.base_directory / "input" / "two.jsonl").read_text().splitlines()
    (server.base_directory / "input" / "other.jsonl").write_text(lines[1] + "\n")
    (server.base_directory / "input" / "other_data.jsonl").write_text("\n".join(rows[2:]) + "\n")
    graph["more_images"]["inputs"]["before"] = "other_data.jsonl"
    assert "'thermal', which has no teacher here" in server.error_of(graph)


@pytest.mark.usefixtures("lessons")
def test_a_run_is_of_the_workflow_that_queued_it(server: Any) -> None:
    """Nodes of two workflows may have one id."""
    notes = {"extra_pnginfo": {"workflow": {"id": "one"}}}
    asked = {"prompt": distil("of one", cycles=2), "extra_data": notes}
    server.wait(prompt := server.post("/prompt", asked)["prompt_id"])
    assert server.get("/collectionlora/run?node=distil&workflow=one")["prompt_id"] == prompt
    assert server.answer(f"/collectionlora/run?prompt={prompt}&workflow=another").keys() == {"error"}
    assert server.get("/collectionlora/run?node=distil")["prompt_id"] == prompt
