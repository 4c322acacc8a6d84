"""What a distillation learns from: folders, lists, prompts, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from graphs import PICTURES, POCKET, distil, node

THERMAL = POCKET / "weights" / "teachers" / "thermal.safetensors"


def folder_of(server: Any, name: str) -> Path:
    path: Path = server.base_directory / "output" / "collectionlora" / name
    return path


@pytest.mark.usefixtures("lessons")
def test_paths_that_come_by_links_are_not_read_anew_at_every_run(server: Any) -> None:
    graph = distil("linked", cycles=2, teachers={"source": ["source", 0]}, images={"before": ["before", 0]})
    graph |= {"source": node("PrimitiveString", value="two.jsonl")}
    graph |= {"before": node("PrimitiveString", value="few.jsonl")}
    server.run(graph)
    again = server.wait(server.queue(graph))["status"]["messages"]
    (cached,) = (content["nodes"] for kind, content in again if kind == "execution_cached")
    assert {"teachers", "images", "distil"} <= {*cached}


def test_a_picture_that_a_list_names_is_read_again_when_it_has_changed(server: Any) -> None:
    folder = server.base_directory / "input"
    shutil.copy(THERMAL, server.base_directory / "models" / "loras")
    Image.new("RGB", (64, 64), "blue").save(folder / "named.png")
    sample = {"source_image": "named.png", "instruction": "x" * 400, "lora_name": "thermal"}
    (folder / "names.jsonl").write_text(json.dumps(sample) + "\n", encoding="utf-8-sig")
    teacher = node("CollectionLoraTeacher", lora="thermal.safetensors", name="", prompt="x", category="")
    images = node(
        "CollectionLoraEffectImages", teachers=["teacher", 0], before="names.jsonl", after="", for_each=0
    )
    shown = node("SaveImage", images=["images", 1], filename_prefix="named")
    for colour in ("blue", "red"):
        Image.new("RGB", (64, 64), colour).save(folder / "named.png")
        saved = server.run({"teacher": teacher, "images": images, "save": shown})["save"]["images"][0]
        sheet = np.asarray(Image.open(server.output_file(saved)).convert("RGB"))
        assert (sheet == np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]).all(-1).any()


def test_what_lists_and_folders_hold_is_noticed_and_contradictions_refused(
    run_inside: Any, tmp_path: Path
) -> None:
    (tmp_path / "input" / "lists").mkdir(parents=True)
    found = run_inside("lists.py", tmp_path / "input" / "lists")
    assert found["beside a dangling link"]
    assert found["in a teacher's folder"]
    assert not found["beside a list"]
    assert "line 2: a has a prompt already" in found["two prompts"]
    assert found["two results"].endswith("a.png and a.jpg are results of one source; keep one")


def test_prompts_are_read_from_text_files_of_windows(server: Any) -> None:
    """Their folder may be a link to another disk; that of the pictures is called like the effect."""
    loras, before = server.base_directory / "another disk", server.base_directory / "input" / "noted"
    loras.mkdir()
    (before / "GLOW").mkdir(parents=True)
    (server.base_directory / "models" / "loras" / "noted").symlink_to(loras, target_is_directory=True)
    shutil.copy(THERMAL, loras / "glow.safetensors")
    shutil.copy(PICTURES[0], before / "GLOW")
    note = loras / "glow.txt"
    note.write_text("Make it glow.", encoding="utf-8-sig")
    graph = distil("noted", cycles=2, teachers={"source": "loras/noted"}, images={"before": "noted"})
    server.run(graph)
    prompt = json.loads((folder_of(server, "noted") / "report.json").read_text())["prompts"]["glow"]
    assert prompt.endswith("> Make it glow"), repr(prompt)
    note.write_bytes("变".encode("gbk"))
    assert "glow.txt is not UTF-8 text; save it as UTF-8" in server.error_of(graph)


def test_pictures_of_a_folder_outside_are_not_read_by_an_effects_name(server: Any) -> None:
    """Only a folder's own subfolders are an effect's."""
    secret = server.base_directory / "secret"
    secret.mkdir()
    Image.new("RGB", (64, 64), "red").save(secret / "red.png")
    shutil.copy(THERMAL, server.base_directory / "models" / "loras")
    (server.base_directory / "input" / "seen").mkdir()
    Image.new("RGB", (64, 64), "blue").save(server.base_directory / "input" / "seen" / "blue.png")
    for name in ("../../secret", str(secret)):
        teacher = node(
            "CollectionLoraTeacher", lora="thermal.safetensors", name=name, prompt="x", category=""
        )
        images = node(
            "CollectionLoraEffectImages", teachers=["teacher", 0], before="seen", after="", for_each=0
        )
        shown = node("SaveImage", images=["images", 1], filename_prefix="shown")
        saved = server.run({"teacher": teacher, "images": images, "save": shown})["save"]["images"][0]
        sheet = np.asarray(Image.open(server.output_file(saved)).convert("RGB"))
        blue, red = ((sheet == colour).all(-1).any() for colour in ([0, 0, 255], [255, 0, 0]))
        assert (blue, red) == (True, False), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {"source": "/etc"}}, "lies outside the folders that may be read"),
        ({"teachers": {"source": "../../elsewhere"}}, "lies outside the folders that may be read"),
        ({"teachers": {"source": "outside.jsonl"}}, "lies outside the folders that may be read"),
        ({"images": {"before": "outside_data.jsonl"}}, "lies outside the folders that may be read"),
        ({"general": {"pictures": "outside_general.jsonl"}}, "lies outside the folders that may be read"),
        ({"teachers": {"source": "nothing"}}, "no such file or folder below ComfyUI's input, output"),
        ({"teachers": {"source": "none here"}}, "holds no .safetensors file"),  # of models
        ({"teachers": {"source": "empty"}}, "holds no .safetensors file"),
        ({"images": {"before": "empty"}}, "holds no picture"),
        (
            {"images": {"before": "photos", "after": "empty"}},
            "no subfolder named like an effect",
        ),
        ({"images": {"after": "photos"}}, "after goes with a folder of sources"),
        ({"general": {"pictures": "empty"}}, "holds no picture"),
        ({"settings": {"more": "ranc = 3"}}, "unknown key ranc; did you mean 'rank'"),
        ({"settings": {"more": "rank ="}}, "more is no TOML"),
    ],
)
@pytest.mark.usefixtures("lessons")
def test_bad_input_is_named(server: Any, changes: dict[str, Any], message: str) -> None:
    for folder in ("input/empty", "input/photos", "models/none here", "elsewhere"):
        (server.base_directory / folder).mkdir(exist_ok=True)
    shutil.copy(PICTURES[0], server.base_directory / "input" / "photos")
    far = server.base_directory / "elsewhere"
    shutil.copy(THERMAL, far)
    shutil.copy(PICTURES[0], far / "photo.webp")
    teacher = {"lora_name": "thermal", "lora_path": str(far / "thermal.safetensors"), "prompt": "x"}
    sample = {"source_image": str(far / "photo.webp"), "instruction": "x", "lora_name": "thermal"}
    for name, row in (("outside", teacher), ("outside_data", sample), ("outside_general", sample)):
        (server.base_directory / "input" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert message in server.error_of(distil("bad", cycles=2, **changes))
    assert not folder_of(server, "bad").exists()


def test_every_picture_and_every_instruction_is_used(
    run_inside: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / name)
    own, one, four = run_inside("general_images.py", tmp_path).values()
    assert one == [["a.png", "one"], ["b.png", "one"], ["c.png", "one"]]
    assert four == [["a.png", "one"], ["b.png", "two"], ["c.png", "three"], ["a.png", "four"]]
    assert len(own) == len({words for _, words in own}) == 290  # as many as the tooltip says
    assert len({picture for picture, _ in own}) == 3


def test_names_that_a_mac_has_made_are_those_that_are_typed(
    run_inside: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert run_inside("names_of_a_mac.py", tmp_path) == ["Grün", "make it green", True]


def test_a_run_that_is_made_longer_keeps_its_warm_cycles(run_inside: Callable[..., dict[str, Any]]) -> None:
    """Else a finished one could not be."""
    made = run_inside("settings.py")
    assert made["warm"] == {"0": 200, "150": 100, "300": 200, "600": 200}
    assert made["imitated"] == {"0": 5000, "50": 50, "8000": 8000}


def test_more_says_how_many_teacher_images_are_made_at_a_time(
    run_inside: Callable[..., dict[str, Any]],
) -> None:
    made = run_inside("settings.py")["targets"]
    assert made[""] == [100, 4.0, 1]
    assert made["[targets]\nbatch = 8"] == [100, 4.0, 8]
    assert made["[targets]\nbatch = 0"] == "targets.batch = 0 is out of range, 1 to 4096"
    refused = "more: [targets] takes batch alone; the node has inputs for the rest"
    assert made["[targets]\nsteps = 3"] == refused
    assert made["targets = 3"] == "targets = 3 must be a list like ['to_q', 'to_k']"
    assert made['targets = ["to_q"]'] == [100, 4.0, 1]  # the Linears that are adapted
