"""A user who applies effects: load, choose, encode, sample."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from graphs import PICTURES, Graph, apply_effect, node

from collectionlora.collection.catalogue import HEADER_KEY
from collectionlora.collection.file import load_collection, read_catalogue, save_collection
from collectionlora.collection.tensors import read_header
from collectionlora.pocket import WEIGHTS

SHIPPED = WEIGHTS / "collection.safetensors"


@pytest.fixture(scope="module")
def photo(server: Any) -> str:
    shutil.copy(PICTURES[0], server.base_directory / "input" / "photo.webp")
    return "photo.webp"


def latent(server: Any, outputs: dict[str, Any], name: str) -> Tensor:
    return load_file(server.output_file(outputs[name]["latents"][0]))["latent_tensor"]


def pixels(server: Any, saved: dict[str, str]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(server.output_file(saved)).convert("RGB"), np.float32) / 255


def by_core(graph: Graph, model: str, sigmas: dict[str, Any]) -> Graph:
    """The graph with core's SamplerCustom and lcm beside ours, and both latents saved."""
    return graph | {
        "sigmas": sigmas,
        "lcm": node("KSamplerSelect", sampler_name="lcm"),
        "negative": node("ConditioningZeroOut", conditioning=["encode", 0]),
        "stock": node(
            "SamplerCustom",
            model=[model, 0],
            add_noise=True,
            noise_seed=1,
            cfg=1.0,
            positive=["encode", 0],
            negative=["negative", 0],
            sampler=["lcm", 0],
            sigmas=["sigmas", 0],
            latent_image=["encode", 1],
        ),
        "save_ours": node("SaveLatent", samples=["sampler", 0], filename_prefix="ours"),
        "save_stock": node("SaveLatent", samples=["stock", 0], filename_prefix="stock"),
    }


@pytest.mark.parametrize("steps", [8, 4])
def test_our_sampler_and_cores_give_the_same_latents(server: Any, photo: str, steps: int) -> None:
    graph = apply_effect(photo, "neon", sampler={"steps": steps})
    graph = by_core(graph, "load", node("CollectionLoraSigmas", model=["load", 0], steps=steps))
    outputs = server.run(graph)
    ours = latent(server, outputs, "save_ours")
    assert ours.shape == (1, 16, 1, 16, 16)
    assert torch.equal(ours, latent(server, outputs, "save_stock"))


def test_cores_lora_loader_gives_the_same_latents(server: Any, photo: str) -> None:
    shutil.copy(SHIPPED, server.base_directory / "models" / "loras" / "shipped.safetensors")
    sigmas = ", ".join(repr(sigma) for sigma in read_catalogue(SHIPPED).sigmas)
    graph = by_core(apply_effect(photo, "neon"), "core", node("ManualSigmas", sigmas=sigmas))
    graph["core"] = node(
        "LoraLoaderModelOnly", model=["pocket", 0], lora_name="shipped.safetensors", strength_model=1.0
    )
    outputs = server.run(graph)
    assert torch.equal(latent(server, outputs, "save_ours"), latent(server, outputs, "save_stock"))


def test_the_sampler_asks_the_model_once_a_step_and_going_back_to_an_effect_costs_nothing(
    run_inside: Callable[..., dict[str, Any]],
) -> None:
    seen = run_inside("sampling.py")
    assert seen["evaluations"] == {"1": 1, "4": 4, "8": 8}
    # A, B and A again on one picture
    assert (seen["texts"], seen["pictures"], seen["same"]) == (2, 1, True)
    assert seen["result"] == ["torch.float16", ["samples"]]


def test_qwens_encoder_sees_the_picture_as_in_cores_node(run_inside: Callable[..., dict[str, Any]]) -> None:
    seen = run_inside("qwen_prompt.py")
    assert seen == {"shape": [1, 3, 4], "pictures": 1, "as core": True, "without": False}


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [((300, 200), "keep", (128, 80)), ((200, 300), "square", (128, 128)), ((37, 211), "keep", (16, 128))],
)
def test_pictures_of_any_size_and_transparency_are_taken(
    server: Any, size: tuple[int, int], shape: str, expected: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), np.uint8))
    noise.save(server.base_directory / "input" / "odd.png")
    outputs = server.run(apply_effect("odd.png", "sketch", encode={"shape": shape}))
    with Image.open(server.output_file(outputs["save"]["images"][0])) as made:
        assert made.size == expected


def test_a_picture_is_by_default_of_the_size_that_the_collection_was_trained_at(
    server: Any, photo: str
) -> None:
    weights, catalogue = load_collection(WEIGHTS / "collection.safetensors")
    path = server.base_directory / "models" / "loras" / "at_192.safetensors"
    save_collection(path, weights, replace(catalogue, training={**catalogue.training, "long_side": 192}))
    graph = apply_effect(photo, "sketch", load={"file": path.name}, encode={"long_side": 0})
    with Image.open(server.output_file(server.run(graph)["save"]["images"][0])) as made:
        assert made.size == (192, 192)


def test_the_reference_method_of_the_training_is_that_of_cores_node(server: Any, photo: str) -> None:
    weights, catalogue = load_collection(WEIGHTS / "collection.safetensors")
    path = server.base_directory / "models" / "loras" / "of_2511.safetensors"
    training = {**catalogue.training, "reference_method": "index_timestep_zero"}
    save_collection(path, weights, replace(catalogue, training=training))
    by_core = apply_effect(photo, "sketch")
    by_core["method"] = node(
        "FluxKontextMultiReferenceLatentMethod",
        conditioning=["encode", 0],
        reference_latents_method="index_timestep_zero",
    )
    by_core["sampler"]["inputs"]["positive"] = ["method", 0]
    graphs = apply_effect(photo, "sketch", load={"file": path.name}), by_core, apply_effect(photo, "sketch")
    ours, cores, without = (pixels(server, server.run(graph)["save"]["images"][0]) for graph in graphs)
    assert np.array_equal(ours, cores)
    assert np.abs(ours - without).mean() > 0.01


def test_a_batch_is_edited_picture_by_picture(server: Any, photo: str) -> None:
    shutil.copy(PICTURES[1], server.base_directory / "input" / "other.webp")
    graph = apply_effect(photo, "thermal")
    graph["other"] = node("LoadImage", image="other.webp")
    graph["both"] = node("ImageBatch", image1=["picture", 0], image2=["other", 0])
    graph["encode"]["inputs"]["image"] = ["both", 0]
    images = server.run(graph)["save"]["images"]
    assert len(images) == 2
    # the noise of a batch's second picture is another one: colours must agree, not pixels
    alone = server.run(apply_effect("other.webp", "thermal"))["save"]["images"]
    first, second, single = (pixels(server, one) for one in (*images, *alone))
    assert np.abs(second - single).mean() < 0.6 * np.abs(second - first).mean()


def test_an_unknown_effect_is_named_with_the_nearest(server: Any, photo: str) -> None:
    message = server.error_of(apply_effect(photo, "scetch"))
    assert "no effect 'scetch' in this collection; did you mean sketch" in message
    message = server.error_of(apply_effect(photo, "sketch", effect={"then": "nothing like it"}))
    assert "no effect 'nothing like it'" in message
    message = server.error_of(apply_effect(photo, "sketch", effect={"then": "neon", "composition": "both"}))
    assert "lacks {first}" in message


def test_a_model_without_a_collection_is_named(server: Any, photo: str) -> None:
    message = server.error_of(apply_effect(photo, "sketch", sampler={"model": ["pocket", 0]}))
    assert "put Load Collection before it" in message


def test_a_collection_of_another_base_is_refused_or_warned_of(
    server: Any, photo: str, collection_file: Path
) -> None:
    shutil.copy(collection_file, server.base_directory / "models" / "loras" / "foreign.safetensors")
    graph = apply_effect(photo, "snow", load={"file": "foreign.safetensors"})
    message = server.error_of(graph)
    ours, theirs = (read_catalogue(path).base["hash"][7:19] for path in (SHIPPED, collection_file))
    assert ours in message
    assert theirs in message
    assert "set other_base to warn" in message
    graph["load"]["inputs"]["other_base"] = "warn"
    assert server.run(graph)["save"]["images"]
    assert f"foreign.safetensors was distilled on qwen_image (2 blocks, {theirs})" in server.log


def plain(metadata: dict[str, str]) -> dict[str, str]:
    return {"format": "pt"}


def catalogue_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, str]], dict[str, str]]:
    def make(metadata: dict[str, str]) -> dict[str, str]:
        content = json.loads(metadata[HEADER_KEY])
        change(content)
        return {**metadata, HEADER_KEY: json.dumps(content)}

    return make


def deep(content: dict[str, Any]) -> None:
    nested: Any = 1
    for _ in range(50):
        nested = [nested]
    content["training"] = {"nested": nested}


HOSTILE: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str]] = {
    "plain": (plain, "this is a plain LoRA, not a collection"),
    "huge": (lambda metadata: {**metadata, "more": "x" * 10_000_000}, "header"),
    "control": (
        catalogue_with(lambda c: c["effects"][0].update(title="a\u202eb")),
        "control character U+202E",
    ),
    "deep": (catalogue_with(deep), "nested"),
    "twice": (catalogue_with(lambda c: c["effects"].append(c["effects"][0])), "have the same name"),
    "long": (catalogue_with(lambda c: c["effects"][0].update(title="x" * 1000)), "more than 120"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_file_is_refused_by_node_and_route(server: Any, photo: str, kind: str) -> None:
    change, message = HOSTILE[kind]
    path = server.base_directory / "models" / "loras" / f"{kind}.safetensors"
    save_file(load_file(SHIPPED), path, change(read_catalogue(SHIPPED).to_header()))
    refused = server.error_of(apply_effect(photo, "sketch", load={"file": path.name}))
    assert message in refused
    assert path.name in refused
    assert message in server.answer(f"/collectionlora/catalogue?file={path.name}")["error"]


def test_a_file_of_a_workflow_from_windows_is_found_and_a_missing_one_named(server: Any, photo: str) -> None:
    folder = server.base_directory / "models" / "loras" / "below"
    folder.mkdir()
    shutil.copy(SHIPPED, folder / "a.safetensors")
    assert server.run(apply_effect(photo, "sketch", load={"file": r"below\a.safetensors"}))["save"]["images"]
    missing = apply_effect(photo, "sketch", load={"file": r"below\b.safetensors"})
    assert "no such file in models/loras" in json.dumps(server.post("/prompt", {"prompt": missing}))


def test_thumbnails_are_served_as_pictures(server: Any) -> None:
    effects = server.get("/collectionlora/catalogue?file=pocket+(built+in)")
    assert len(effects) == 50
    for effect in effects:
        with server.open(effect["thumbnail"]) as answer:
            assert answer.headers["Content-Type"].startswith("image/")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            with Image.open(io.BytesIO(answer.read())) as picture:
                assert picture.width == 2 * picture.height  # source and result
    assert (
        "did you mean" in server.answer("/collectionlora/thumbnail?file=pocket+(built+in)&effect=x")["error"]
    )


def test_markup_in_a_title_stays_text(server: Any) -> None:
    change = catalogue_with(lambda c: c["effects"][0].update(title="<img src=x onerror=alert(1)>"))
    path = server.base_directory / "models" / "loras" / "markup.safetensors"
    save_file(load_file(SHIPPED), path, change(read_catalogue(SHIPPED).to_header()))
    effects = server.get("/collectionlora/catalogue?file=markup.safetensors")
    assert effects[0]["title"] == "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "", "nothing.safetensors"])
def test_the_route_reads_nothing_outside_the_lora_folders(server: Any, name: str) -> None:
    (server.base_directory / "secret.safetensors").write_bytes(SHIPPED.read_bytes())
    assert "error" in server.answer(f"/collectionlora/catalogue?file={name}")


@pytest.mark.parametrize("filename", ["../../out", "/tmp/out", "a/../../b", "a:b", " ", "end."])
def test_saving_stays_in_its_folder(server: Any, filename: str) -> None:
    graph = apply_effect("photo.webp", "sketch")
    kept = {key: graph[key] for key in ("pocket", "load")}
    kept["save"] = node("CollectionLoraSave", collection=["load", 1], filename=filename)
    assert "give a name below models/loras" in server.error_of(kept)


def test_saving_never_overwrites(server: Any) -> None:
    graph = apply_effect("photo.webp", "sketch")
    kept = {key: graph[key] for key in ("pocket", "load")}
    for number in (1, 2):
        kept["save"] = node("CollectionLoraSave", collection=["load", 1], filename="kept")
        kept["load"]["inputs"]["strength"] = 1.0 - number / 10  # or the cache would answer
        server.run(kept)
    folder = server.base_directory / "models" / "loras"
    assert {"kept.safetensors", "kept 2.safetensors"} <= {path.name for path in folder.iterdir()}
    assert read_catalogue(folder / "kept 2.safetensors") == read_catalogue(SHIPPED)


def test_saving_keeps_what_other_programs_wrote(server: Any) -> None:
    folder = server.base_directory / "models" / "loras"
    weights, catalogue = load_collection(SHIPPED)
    save_collection(folder / "signed.safetensors", weights, catalogue, {"modelspec.author": "someone"})
    graph = apply_effect("photo.webp", "sketch", load={"file": "signed.safetensors"})
    kept = {key: graph[key] for key in ("pocket", "load")}
    kept["save"] = node("CollectionLoraSave", collection=["load", 1], filename="signed copy")
    server.run(kept)
    assert read_header(folder / "signed copy.safetensors").metadata["modelspec.author"] == "someone"
