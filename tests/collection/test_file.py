"""The collection file: exact, atomic, bounded."""

from __future__ import annotations

import errno
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from collectionlora.collection import file as collection_file
from collectionlora.collection import tensors, thumbnails
from collectionlora.collection.catalogue import HEADER_KEY, Catalogue, Effect, fingerprint
from collectionlora.collection.errors import CollectionError, LoraFormatError
from collectionlora.collection.file import (
    HEADER_WRITTEN,
    load_collection,
    read_catalogue,
    save_collection,
    with_thumbnails,
)
from collectionlora.collection.layouts import read_lora, write_lora
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.collection.tensors import HEADER_REFUSED, read_header
from collectionlora.collection.thumbnails import fit_thumbnails, header_cost


def photo(seed: int, size: int = 96) -> Image.Image:
    """Smooth shapes with some grain, about as hard to compress as a photograph."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(
        (size, size), Image.BICUBIC
    )
    grain = generator.normal(0, 6, (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def big_catalogue(count: int) -> Catalogue:
    effects = tuple(
        Effect(
            f"effect_{n}",
            f"Effect number {n}",
            f"<{n:04d}_effect_RN8pcKDi>",
            f"<{n:04d}_effect_RN8pcKDi> " + "word " * 40,
        )
        for n in range(count)
    )
    return Catalogue(effects, (1.0, 0.75, 0.5, 0.0), fingerprint({"img_in": (1, 1)}))


def big_weights() -> LoraWeights:
    """As many modules as a collection for the 20B model has, and no size."""
    weights = LoraWeights()
    for block in range(60):
        for n in range(14):
            module = f"transformer_blocks.{block}.img_mlp.net.0.prj{n:02d}"
            weights.down[module], weights.up[module], weights.alpha[module] = (
                torch.ones(1, 1),
                torch.ones(1, 1),
                1.0,
            )
    return weights


class TestRoundTrip:
    """What is saved is loaded."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_exact(self, dtype, tmp_path, catalogue, make_weights, assert_equal, shapes):
        weights = make_weights(dtype=dtype, alpha=2.5)
        path = tmp_path / "c.safetensors"
        save_collection(path, weights, catalogue)
        found, its_catalogue = load_collection(path, shapes)
        assert_equal(found, weights)
        assert its_catalogue == catalogue == read_catalogue(path)

    def test_of_a_peft_folder_is_by_its_name(self, tmp_path, catalogue, make_weights, assert_equal):
        weights = make_weights()
        write_lora(weights, tmp_path, "peft", catalogue.to_header())
        found, its_catalogue = load_collection(tmp_path)
        assert_equal(found, weights)
        assert its_catalogue == catalogue

    def test_is_a_plain_lora_for_everyone_else(self, tmp_path, catalogue, make_weights, assert_equal):
        weights = make_weights()
        save_collection(tmp_path / "c.safetensors", weights, catalogue)
        assert_equal(read_lora(tmp_path / "c.safetensors"), weights)
        keys = read_header(tmp_path / "c.safetensors").tensors
        assert all(key.startswith("diffusion_model.") for key in keys)
        assert not any("thumb" in key for key in keys)

    def test_is_the_same_bytes_each_time(self, tmp_path, catalogue, make_weights):
        for n in range(8):
            save_collection(tmp_path / str(n), make_weights(), catalogue)
        assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


class TestRefusal:
    """Broken files do not get in, and a failed save does no harm."""

    def test_of_a_plain_lora(self, tmp_path, make_weights):
        write_lora(make_weights(), tmp_path / "l.safetensors", "comfy")
        with pytest.raises(
            CollectionError, match=r"l\.safetensors: no catalogue in it: this is a plain LoRA"
        ):
            load_collection(tmp_path / "l.safetensors")

    def test_of_a_hostile_catalogue_names_the_file(self, tmp_path, make_weights):
        write_lora(make_weights(), tmp_path / "l.safetensors", "comfy", {HEADER_KEY: '{"version": 1}'})
        with pytest.raises(CollectionError, match=r"l\.safetensors: the catalogue has no 'effects'"):
            read_catalogue(tmp_path / "l.safetensors")

    def test_of_a_truncated_file(self, tmp_path, catalogue, make_weights):
        path = tmp_path / "c.safetensors"
        save_collection(path, make_weights(), catalogue)
        path.write_bytes(path.read_bytes()[:-1])
        for read in (load_collection, read_catalogue):
            with pytest.raises(LoraFormatError, match="truncated"):
                read(path)

    def test_of_nan_weights(self, tmp_path, catalogue, make_weights, save_keys):
        weights = make_weights()
        weights.down["img_in"][0, 0] = math.nan
        with pytest.raises(LoraFormatError, match="'img_in': down holds NaN"):
            save_collection(tmp_path / "c.safetensors", weights, catalogue)
        assert not list(tmp_path.iterdir())
        save_keys(
            tmp_path / "c.safetensors",
            weights,
            lambda module, part: f"diffusion_model.{module}.lora_{part}.weight",
            metadata=catalogue.to_header(),
        )
        with pytest.raises(LoraFormatError, match=r"'diffusion_model\.img_in\.lora_A\.weight' holds NaN"):
            load_collection(tmp_path / "c.safetensors")

    def test_of_another_base(self, tmp_path, catalogue, make_weights, shapes):
        save_collection(tmp_path / "c.safetensors", make_weights(), catalogue)
        with pytest.raises(LoraFormatError, match="has shape"):
            load_collection(
                tmp_path / "c.safetensors", {name: (out + 1, inn + 1) for name, (out, inn) in shapes.items()}
            )

    def test_of_a_huge_header_is_without_parsing(self, tmp_path, monkeypatch):
        path = tmp_path / "c.safetensors"
        size = HEADER_REFUSED + 1
        path.write_bytes(struct.pack("<Q", size) + b"{" + b" " * (size - 2) + b"}")
        monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
        with pytest.raises(LoraFormatError, match=f"claims {size} bytes"):
            read_catalogue(path)

    def test_of_a_header_that_comfyui_would_not_show(self, tmp_path, make_weights):
        noise = np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)
        heavy = thumbnails._encode(None, Image.fromarray(noise), 256, 100)
        catalogue = big_catalogue(30)
        catalogue = replace(catalogue, effects=tuple(replace(e, thumbnail=heavy) for e in catalogue.effects))
        (tmp_path / "c.safetensors").write_text("old")
        with pytest.raises(CollectionError, match="leave pictures out, or shorten the prompts"):
            save_collection(tmp_path / "c.safetensors", make_weights(), catalogue)
        assert (tmp_path / "c.safetensors").read_text() == "old"

    def test_a_full_disk_leaves_the_previous_collection(
        self, tmp_path, catalogue, make_weights, monkeypatch, assert_equal
    ):
        path, weights = tmp_path / "c.safetensors", make_weights()
        save_collection(path, weights, catalogue)

        def full(_tensors, name, **_):
            with open(name, "wb") as file:  # noqa: PTH123
                file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tensors, "save_file", full)
        with pytest.raises(CollectionError, match="disk is full, the previous file is untouched"):
            save_collection(path, make_weights(seed=1), catalogue)
        for layout, target in (("comfy", path), ("kohya", path)):
            with pytest.raises(CollectionError, match="disk is full"):
                write_lora(make_weights(seed=1), target, layout)
        assert_equal(load_collection(path)[0], weights)
        assert [entry.name for entry in tmp_path.iterdir()] == ["c.safetensors"]

    def test_a_full_disk_leaves_the_previous_peft_folder(
        self, tmp_path, make_weights, monkeypatch, assert_equal
    ):
        weights = make_weights(alpha=3)
        write_lora(weights, tmp_path / "peft", "peft")

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tensors, "save_file", full)
        with pytest.raises(CollectionError, match="disk is full"):
            write_lora(make_weights(rank=2, alpha=9), tmp_path / "peft", "peft")
        assert_equal(read_lora(tmp_path / "peft"), weights)
        assert len(list((tmp_path / "peft").iterdir())) == 2


class TestThumbnails:
    """As large as fits, never larger than the header allows."""

    def test_of_180_effects_fit_into_the_header_of_the_20b_model(self, tmp_path):
        catalogue, weights = big_catalogue(180), big_weights()
        one = (photo(0), photo(1))
        full = with_thumbnails(catalogue, weights, {effect.name: one for effect in catalogue.effects})
        save_collection(tmp_path / "c.safetensors", weights, full)
        assert read_header(tmp_path / "c.safetensors").size <= HEADER_WRITTEN
        assert all(effect.thumbnail for effect in full.effects)

    def test_of_few_effects_are_large_pairs(self, catalogue, make_weights):
        made = with_thumbnails(
            catalogue, make_weights(), {"frost": (photo(0), photo(1)), "neon": (None, photo(2))}
        )
        sizes = [
            Image.open(__import__("io").BytesIO(e.thumbnail)).size if e.thumbnail else None
            for e in made.effects
        ]
        assert sizes == [(384, 192), None, (192, 192)]
        assert replace(made, effects=catalogue.effects) == catalogue

    def test_shrink_step_by_step_as_the_room_shrinks(self):
        pairs = {"a": (photo(0), photo(1)), "b": (photo(2), photo(3))}
        largest = fit_thumbnails(pairs, 10**9)
        room = sum(map(header_cost, largest.values()))
        steps = []
        while True:
            try:
                made = fit_thumbnails(pairs, room)
            except CollectionError:
                break
            assert sum(map(header_cost, made.values())) <= room
            sizes = {Image.open(__import__("io").BytesIO(data)).size for data in made.values()}
            assert len(sizes) == 1
            steps.append(sizes.pop())
            room = sum(map(header_cost, made.values())) - 1
        assert steps[0] == (384, 192)
        assert steps[-1] == (64, 64)
        assert [height for _, height in steps] == sorted((height for _, height in steps), reverse=True)

    def test_that_do_not_fit_at_all_are_said(self):
        with pytest.raises(CollectionError, match="1 thumbnails do not fit into the 50 bytes"):
            fit_thumbnails({"a": (None, photo(0))}, 50)

    def test_for_unknown_effects_are_refused(self, catalogue, make_weights):
        with pytest.raises(CollectionError, match="no effect 'forst'"):
            with_thumbnails(catalogue, make_weights(), {"forst": (None, photo(0))})

    def test_the_size_foretold_is_no_less_than_the_real_one(self, tmp_path, catalogue, make_weights):
        weights = make_weights(alpha=0.3)
        path = tmp_path / "c.safetensors"
        save_collection(path, weights, catalogue)
        foretold = collection_file._header_size(collection_file.comfy_tensors(weights), catalogue.to_header())
        real = read_header(path).size
        assert real <= foretold <= real * 1.2
