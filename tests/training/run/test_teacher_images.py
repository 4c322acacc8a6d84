"""Teacher images are made once, and anew when anything they depend on has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, ones

from collectionlora.training.bank import TeacherBank, lora_hash
from collectionlora.training.flow import few_step_sigmas
from collectionlora.training.lora import linear_shapes
from collectionlora.training.pictures import to_floats, to_pixels
from collectionlora.training.randomness import generator
from collectionlora.training.roles import Roles
from collectionlora.training.teacher_images import TeacherImageMaker, Wanted


class Workshop:
    """A maker whose parts can be changed between two calls."""

    def __init__(self, tiny: ModuleType, host: Any, folder: Path) -> None:
        self.host, self.folder = host, folder
        self.files = tiny.write_teachers(folder)
        self.settings: dict[str, Any] = {"steps": 2, "guidance": 4.0, "batch": 2, "seed": 0}
        image = torch.rand(3, 4, 6, generator=generator(0, "image"))
        self.wanted = [self.want(name, image) for name in ("frost", "neon", "frost")]
        self.wanted[2] = self.want("frost", 1 - image)

    def want(self, name: str, image: Tensor) -> Wanted:
        pixels, source = to_pixels(image), self.host.encode_image(image[None])[0]
        return Wanted(name, name, pixels, source, lambda prompt, _: self.host.encode_text([prompt], None)[0])

    def make(self, cancelled: Callable[[], bool] = lambda: False) -> tuple[dict[int, Tensor], int]:
        """The images by index, and how many network evaluations they cost."""
        bank = TeacherBank(self.files, linear_shapes(self.host.transformer))
        maker = TeacherImageMaker(self.host, bank, self.folder / "made", **self.settings)
        self.host.evaluations = 0
        with Roles(self.host.transformer, {}) as roles:
            images = dict(maker.make(roles, self.wanted, cancelled))
        self.paths = {i: image.path for i, image in images.items()}
        return {i: image.latent for i, image in images.items()}, self.host.evaluations


@pytest.fixture
def workshop(tiny: ModuleType, host: Any, tmp_path: Path) -> Workshop:
    return Workshop(tiny, host, tmp_path)


def test_each_image_is_its_own_teachers_and_made_once(workshop: Workshop) -> None:
    made, cost = workshop.make()
    assert sorted(made) == [0, 1, 2]
    assert cost == 3 * 2 * 2
    assert not torch.allclose(made[0], made[1])
    again, cost = workshop.make()
    assert cost == 0
    assert all(torch.equal(again[i], made[i]) for i in made)


def test_an_image_does_not_depend_on_its_batch(workshop: Workshop, tmp_path: Path) -> None:
    made, _ = workshop.make()
    workshop.folder, workshop.settings["batch"] = tmp_path / "other", 1
    alone, _ = workshop.make()
    assert all(torch.allclose(alone[i], made[i], atol=1e-5) for i in made)


def test_prompts_of_several_lengths_and_pictures_of_several_sizes_are_never_in_one_batch(
    workshop: Workshop, tmp_path: Path
) -> None:
    neon = workshop.wanted[1]
    workshop.wanted[1] = replace(neon, encode=lambda *asked: neon.encode(*asked).repeat(2, 1))
    wide = torch.rand(3, 4, 8, generator=generator(0, "wide"))
    workshop.wanted += [workshop.want("neon", wide), workshop.want("frost", wide)]
    workshop.settings["batch"] = 8
    made, _ = workshop.make()
    workshop.folder, workshop.settings["batch"] = tmp_path / "other", 1
    alone, _ = workshop.make()
    assert sorted(made) == sorted(alone) == [0, 1, 2, 3, 4]
    assert all(torch.allclose(alone[i], made[i], atol=1e-5) for i in made)


def test_the_way_to_an_image_is_kept_where_it_is_wanted(workshop: Workshop) -> None:
    workshop.settings |= {"steps": 6, "guidance": 0.0}
    made, _ = workshop.make()
    assert workshop.paths == {0: None, 1: None, 2: None}
    workshop.settings["path_sigmas"] = (1, 0.82, 0.6)
    again, cost = workshop.make()
    assert cost == 3 * 6  # images without their ways are made anew, and are the same
    for _ in range(2):
        for i, path in workshop.paths.items():
            torch.testing.assert_close(again[i], made[i])
            assert path is not None
            assert path.sigmas.tolist() == pytest.approx([1, 6 / 7, 0.6])  # of six steps, the nearest
            assert path.states.shape == (3, *made[i].shape)
            key = next(file.stem for file in (workshop.folder / "made").iterdir() if holds(file, made[i]))
            noise = torch.randn(made[i].shape, generator=generator(0, "target", key))
            torch.testing.assert_close(path.states[0].float(), noise, atol=2e-3, rtol=0)
            assert not torch.allclose(path.states[2].float(), noise, atol=0.1)
        again, cost = workshop.make()
        assert cost == 0
    workshop.settings["path_sigmas"] = few_step_sigmas(2)[:-1]
    assert workshop.make()[1] == 3 * 6  # other states


def holds(file: Path, latent: Tensor) -> bool:
    return torch.equal(load_file(file)["latent"], latent)


def another_teacher(workshop: Workshop) -> None:
    workshop.files["frost"] = workshop.files["comic"]


def another_prompt(workshop: Workshop) -> None:
    workshop.wanted[0] = replace(workshop.wanted[0], prompt="frost!")
    workshop.wanted[2] = replace(workshop.wanted[2], prompt="frost!")


def another_source(workshop: Workshop) -> None:
    for i in (0, 2):
        workshop.wanted[i] = workshop.want("frost", to_floats(workshop.wanted[i].pixels) * 0.5)


def another_base(workshop: Workshop) -> None:
    workshop.host.identity = "tiny, second training"


@pytest.mark.parametrize(
    ("change", "remade"),
    [(another_teacher, 2), (another_prompt, 2), (another_source, 2), (another_base, 3)],
)
def test_what_an_image_depends_on_makes_it_anew(
    workshop: Workshop, change: Callable[[Workshop], None], remade: int
) -> None:
    workshop.make()
    change(workshop)
    _, cost = workshop.make()
    assert cost == remade * 2 * 2


@pytest.mark.parametrize("setting", [{"steps": 3}, {"guidance": 0.0}, {"seed": 1}])
def test_another_sampler_makes_all_anew(workshop: Workshop, setting: dict[str, Any]) -> None:
    workshop.make()
    workshop.settings |= setting
    assert workshop.make()[1] > 0
    assert len(list((workshop.folder / "made").iterdir())) == 6


def test_rounding_of_the_latents_does_not_make_images_anew(workshop: Workshop) -> None:
    # Another machine or thread count computes latents and embeddings with other last bits.
    workshop.make()
    workshop.wanted = [replace(one, source=one.source + 1e-6) for one in workshop.wanted]
    assert workshop.make()[1] == 0


def test_what_is_there_needs_no_prompt(workshop: Workshop) -> None:
    workshop.make()
    asked: list[str] = []
    workshop.wanted = [replace(one, encode=lambda prompt, _: asked.append(prompt)) for one in workshop.wanted]
    assert workshop.make()[1] == 0
    assert not asked


def test_a_damaged_image_is_made_anew(workshop: Workshop) -> None:
    made, _ = workshop.make()
    path = next((workshop.folder / "made").iterdir())
    path.write_bytes(path.read_bytes()[:-4])
    again, cost = workshop.make()
    assert cost == 2 * 2
    assert all(torch.allclose(again[i], made[i], atol=1e-5) for i in made)


def test_a_cancel_keeps_the_batches_done(workshop: Workshop) -> None:
    asked: list[None] = []

    def second_time() -> bool:
        asked.append(None)
        return len(asked) > 1 + workshop.settings["steps"]  # before an image and before each of its steps

    made, _ = workshop.make(second_time)
    assert len(made) == 2
    assert workshop.make()[1] == 2 * 2


def test_a_cancel_is_heeded_within_an_image(workshop: Workshop) -> None:
    asked: list[None] = []

    def in_the_first() -> bool:
        asked.append(None)
        return len(asked) == 3

    workshop.settings["steps"] = 4
    assert workshop.make(in_the_first) == ({}, 2 * 2 * 2)  # two steps of two images, guided
    assert not list((workshop.folder / "made").glob("*"))


def test_images_that_are_no_numbers_are_neither_kept_nor_taken(workshop: Workshop) -> None:
    made, _ = workshop.make()
    key = workshop.host.velocity
    for path in (workshop.folder / "made").iterdir():
        save_file({name: tensor * torch.nan for name, tensor in load_file(path).items()}, path)
    workshop.host.velocity = lambda *args: key(*args) * torch.nan
    with pytest.raises(ValueError, match="the teacher of 'frost' makes pictures of NaN or infinity"):
        workshop.make()
    workshop.host.velocity = key
    again, cost = workshop.make()
    assert cost == 3 * 2 * 2
    assert all(torch.allclose(again[i], made[i], atol=1e-5) for i in made)


def test_the_hash_of_a_folder_covers_what_is_read_of_it(tmp_path: Path) -> None:
    module = "transformer_blocks.0.attn.to_q"

    def saved(name: str, value: float) -> str:
        up = value * ones(4, 2)
        save_file({f"{module}.lora_A.weight": ones(2, 4), f"{module}.lora_B.weight": up}, tmp_path / name)
        return lora_hash(tmp_path)

    hashes = [saved("style.safetensors", 1.0), saved("style.safetensors", 2.0)]
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 1}')
    hashes.append(lora_hash(tmp_path))
    (tmp_path / ".DS_Store").write_text("of no matter")
    assert len({*hashes}) == 3
    assert lora_hash(tmp_path) == hashes[-1]


def test_the_hash_of_a_file_covers_the_configuration_that_it_is_read_with(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    module = "transformer_blocks.0.attn.to_q"
    save_file({f"{module}.lora_A.weight": ones(2, 4), f"{module}.lora_B.weight": ones(4, 2)}, file)
    hashes = [lora_hash(file)]
    for alpha in (2, 4):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha}))
        hashes.append(lora_hash(file))
    file = file.rename(tmp_path / "style.safetensors")
    hashes.append(lora_hash(file))
    assert len({*hashes}) == 4
    (tmp_path / "adapter_config.json").unlink()
    assert lora_hash(file) == hashes[-1]  # it belonged to none in particular
