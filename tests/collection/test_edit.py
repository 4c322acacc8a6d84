"""Another catalogue for the same weights."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image

from collectionlora.collection.catalogue import HEADER_KEY
from collectionlora.collection.edit import edit_collection
from collectionlora.collection.errors import CollectionError
from collectionlora.collection.file import (
    HEADER_WRITTEN,
    load_collection,
    read_catalogue,
    save_collection,
    with_thumbnails,
)
from collectionlora.collection.inspect import convert, describe
from collectionlora.collection.layouts import comfy_tensors
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.collection.tensors import read_header, save_tensors


@pytest.fixture
def path(tmp_path, catalogue, make_weights):
    """A collection on the disk whose effects have thumbnails."""
    weights = make_weights()
    picture = Image.new("RGB", (64, 64), "red")
    pairs = {effect.name: (picture, picture) for effect in catalogue.effects}
    save_collection(tmp_path / "c.safetensors", weights, with_thumbnails(catalogue, weights, pairs))
    return tmp_path / "c.safetensors"


def test_titles_change_and_the_weights_do_not(path, assert_equal):
    weights, before = load_collection(path)
    first, *others = before.effects
    edited = edit_collection(path, path, titles={first.name: "Another title"})
    after_weights, after = load_collection(path)
    assert_equal(after_weights, weights)
    assert after == edited
    assert after.effects == (replace(first, title="Another title"), *others)


def test_an_effect_is_left_out_of_a_copy(path):
    before = read_catalogue(path)
    copy = path.with_name("copy.safetensors")
    gone = before.effects[0].name
    edit_collection(path, copy, drop=[gone])
    assert read_catalogue(copy).effects == before.effects[1:]
    assert read_catalogue(path) == before


def test_a_picture_becomes_a_thumbnail_as_high_as_the_one_before(path):
    before = read_catalogue(path).effects[0]
    edit_collection(path, path, pictures={before.name: Image.new("RGB", (900, 500), "blue")})
    after = read_catalogue(path).effects[0]
    old, new = (Image.open(io.BytesIO(one.thumbnail)) for one in (before, after))
    assert new.size == (old.height, old.height)
    red, _, blue = new.convert("RGB").getpixel((5, 5))
    assert blue > 200
    assert red < 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titles": {"nothing": "x"}}, "no effect 'nothing'"),
        ({"drop": ["nothing"]}, "no effect 'nothing'"),
        ({"titles": {"FIRST": " "}}, "title is empty"),
        ({"titles": {"FIRST": "a\u202eb"}}, "control character"),
        ({"drop": "EVERY"}, "without effects"),
    ],
)
def test_a_wrong_change_leaves_the_file_as_it_was(path, change, message):
    names = [effect.name for effect in read_catalogue(path).effects]
    change = {key: names if value == "EVERY" else value for key, value in change.items()}
    if "FIRST" in change.get("titles", {}):
        change = {"titles": {names[0]: change["titles"]["FIRST"]}}
    bytes_before = path.read_bytes()
    with pytest.raises(CollectionError, match=message):
        edit_collection(path, path, **change)
    assert path.read_bytes() == bytes_before


def test_what_other_programs_wrote_into_the_header_stays(path):
    weights, catalogue = load_collection(path)
    others = {"modelspec.author": "a", "modelspec.license": "b", HEADER_KEY: "not this"}
    save_collection(path, weights, catalogue, others)
    assert read_header(path).metadata == {**others, **catalogue.to_header()}
    edited = edit_collection(path, path, titles={catalogue.effects[0].name: "Another title"})
    assert read_header(path).metadata == {**others, **edited.to_header()}


def test_pictures_of_a_file_with_a_larger_header_are_made_smaller(path, make_weights):
    """Others may write headers of up to 8 MiB; ComfyUI shows none above 1 MiB."""
    catalogue = read_catalogue(path)
    noise = Image.effect_noise((700, 700), 100).convert("RGB")
    large = io.BytesIO()
    noise.save(large, "WEBP", quality=100)
    effects = tuple(replace(effect, thumbnail=large.getvalue()) for effect in catalogue.effects)
    save_tensors(path, comfy_tensors(make_weights()), replace(catalogue, effects=effects).to_header())
    first = catalogue.effects[0].name
    assert read_header(path).size > HEADER_WRITTEN
    edit_collection(path, path, titles={first: "Another title"})
    assert read_header(path).size <= HEADER_WRITTEN
    after = read_catalogue(path)
    assert after[first].title == "Another title"
    assert all(effect.thumbnail for effect in after.effects)


def test_a_collection_on_another_base_is_edited_described_and_converted(path, tmp_path, assert_equal):
    weights, catalogue = load_collection(path)
    renamed = {name: f"double_blocks.{i}.img_attn.qkv" for i, name in enumerate(weights.down)}
    other = LoraWeights(
        *({renamed[name]: one for name, one in part.items()} for part in (weights.down, weights.up)),
        {renamed[name]: alpha for name, alpha in weights.alpha.items()},
    )
    file = tmp_path / "flux.safetensors"
    save_collection(file, other, catalogue)
    name = catalogue.effects[0].name
    edit_collection(file, file, titles={name: "Another title"})
    after, told = load_collection(file)
    assert_equal(after, other)
    assert told[name].title == "Another title"
    assert describe(file)["modules"] == len(weights.down)
    assert describe(file)["base"]["name"] == catalogue.base.get("name", "unknown")
    convert(file, tmp_path / "peft", "peft")
    convert(tmp_path / "peft", tmp_path / "back.safetensors", "comfy")
    assert_equal(load_collection(tmp_path / "back.safetensors")[0], other)
    with pytest.raises(CollectionError, match="convert it to comfy or peft"):
        convert(file, tmp_path / "kohya.safetensors", "kohya")


def test_a_thumbnail_that_cannot_be_decoded_is_named(path, make_weights, catalogue):
    large = io.BytesIO()
    Image.effect_noise((700, 700), 100).convert("RGB").save(large, "PNG")
    broken = large.getvalue()[: len(large.getvalue()) // 2]
    effects = tuple(replace(effect, thumbnail=broken) for effect in catalogue.effects)
    save_tensors(path, comfy_tensors(make_weights()), replace(catalogue, effects=effects).to_header())
    before = path.read_bytes()
    first = catalogue.effects[0].name
    with pytest.raises(CollectionError, match=f"the thumbnail of effect '{first}' is a damaged picture"):
        edit_collection(path, path, titles={first: "Another title"})
    assert path.read_bytes() == before
