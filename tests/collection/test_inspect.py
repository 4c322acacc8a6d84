"""Describing a file and changing its layout."""

from __future__ import annotations

import json

import pytest

from collectionlora.collection.catalogue import HEADER_KEY
from collectionlora.collection.errors import CollectionError, LoraFormatError
from collectionlora.collection.file import load_collection, save_collection
from collectionlora.collection.inspect import convert, describe, render
from collectionlora.collection.layouts import LAYOUTS, open_source, read_lora, write_lora


def target(folder, layout):
    return folder / (layout if layout == "peft" else f"{layout}.safetensors")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_is_described(layout, tmp_path, make_weights, shapes):
    weights = make_weights(rank=4, alpha=2)
    path = target(tmp_path, layout)
    write_lora(weights, path, layout)
    found = describe(path)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["kind"] == "lora"
    assert found["layout"] == layout
    assert found["modules"] == len(shapes)
    assert found["ranks"] == {"4": len(shapes)}
    assert found["scales"] == {"0.5": len(shapes)}
    assert found["dtypes"] == {"bfloat16": 2 * len(shapes)}
    assert found["parameters"] == sum(4 * (out + inn) for out, inn in shapes.values())
    assert found["targets"]["attn.to_q"] == 3
    assert found["base"]["width"] == 8
    text = render(found)
    assert "rank 4; scale 0.5" in text


def test_mixed_ranks_are_counted(tmp_path, make_weights):
    weights, other = make_weights(["img_in", "txt_in"], rank=4), make_weights(["proj_out"], rank=2)
    for part in ("down", "up", "alpha"):
        getattr(weights, part).update(getattr(other, part))
    write_lora(weights, tmp_path / "l.safetensors", "comfy")
    found = describe(tmp_path / "l.safetensors")
    assert found["ranks"] == {"4": 2, "2": 1}
    assert "rank 4 (2x), 2 (1x)" in render(found)


def test_a_collection_is_described_with_its_effects(tmp_path, make_weights, catalogue):
    save_collection(tmp_path / "c.safetensors", make_weights(), catalogue)
    found = describe(tmp_path / "c.safetensors")
    assert json.loads(json.dumps(found)) == found
    assert found["kind"] == "collection"
    assert found["catalogue"]["nfe"] == 8
    assert [effect["name"] for effect in found["catalogue"]["effects"]] == ["frost", "sketch", "neon"]
    text = render(found)
    assert "3 effects at 8 steps" in text
    assert "frost: Frost: <frost_x1> make it frost" in text
    assert "training: steps = 5000" in text


def test_a_broken_file_is_not_described_but_refused(tmp_path):
    with pytest.raises(LoraFormatError, match="no such file"):
        describe(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("start", LAYOUTS)
def test_conversion_keeps_every_bit(start, to, tmp_path, make_weights, assert_equal):
    weights = make_weights(alpha=0.1)
    src, dst = target(tmp_path / "src", start), target(tmp_path / "dst", to)
    write_lora(weights, src, start)
    convert(src, dst, to)
    assert_equal(read_lora(dst), weights)
    assert open_source(dst).layout == to


def test_conversion_keeps_the_catalogue_and_notes_but_no_second_alpha(
    tmp_path, make_weights, catalogue, assert_equal, save_keys
):
    weights = make_weights()
    save_collection(tmp_path / "c.safetensors", weights, catalogue)
    convert(tmp_path / "c.safetensors", tmp_path / "k.safetensors", "kohya")
    found, its_catalogue = load_collection(tmp_path / "k.safetensors")
    assert_equal(found, weights)
    assert its_catalogue == catalogue

    notes = {"ss_tag": "x", "lora_adapter_metadata": '{"r": 4, "lora_alpha": 4}', HEADER_KEY: "kept"}
    path = save_keys(tmp_path / "d.safetensors", weights, lambda m, p: f"{m}.lora_{p}.weight", metadata=notes)
    convert(path, tmp_path / "e.safetensors", "comfy")
    kept = open_source(tmp_path / "e.safetensors").metadata
    assert kept["ss_tag"] == "x"
    assert kept[HEADER_KEY] == "kept"
    assert "lora_adapter_metadata" not in kept


def test_conversion_refuses_what_would_surprise(tmp_path, make_weights):
    path = tmp_path / "l.safetensors"
    write_lora(make_weights(), path, "comfy")
    before = path.read_bytes()
    with pytest.raises(CollectionError, match="source and destination are the same"):
        convert(path, tmp_path / "." / "l.safetensors", "kohya")
    with pytest.raises(CollectionError, match=r"ends in \.safetensors"):
        convert(path, tmp_path / "out", "kohya")
    with pytest.raises(LoraFormatError, match="layouts written: comfy, peft, kohya"):
        convert(path, tmp_path / "out.safetensors", "onnx")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["l.safetensors"]
