"""General edits: only those with one true result are measured, and a spoilt collection shows."""

import shutil

import numpy as np
import pytest
import torch

from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.pocket.general import judge_general, unique_edit
from collectionlora.pocket.images import PHOTOGRAPHS, load_folder
from collectionlora.pocket.rows import Student
from collectionlora.training.flow import few_step_sigmas
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.lora import target_shapes
from collectionlora.training.randomness import generator


@pytest.fixture(scope="module")
def images(repository):
    return repository / "pocket" / "pictures" / "test"


def student(host, strength):
    draw = generator(0, "spoilt")
    shapes = target_shapes(host.transformer)
    down = {path: torch.randn(2, columns, generator=draw) for path, (_, columns) in shapes.items()}
    up = {path: strength * torch.randn(rows, 2, generator=draw) for path, (rows, _) in shapes.items()}
    return Student([LoraWeights(down, up, dict.fromkeys(shapes, 2.0))], {}, few_step_sigmas(8))


def test_a_spoilt_collection_is_worse_than_the_base_and_nothing_beats_the_autoencoder(images):
    host = PocketHost()
    calls = []
    kept = judge_general(host, student(host, 0.0), images, 2, 2, progress=lambda *call: calls.append(call))
    lora = student(host, 0.1)
    spoilt = judge_general(host, lora, images, 2, 2, few_step=lora.loras[0])
    assert kept["edits"] == 4
    assert spoilt["error"]["base@40"] == kept["error"]["base@40"]
    assert kept["error"]["base@8"] == pytest.approx(kept["error"]["collection@8"])  # it is no adapter at all
    assert spoilt["error"]["base@8"] == kept["error"]["base@8"]
    assert spoilt["ratio"]["collection@8"]["mean"] > 1.5 * kept["ratio"]["collection@8"]["mean"]
    for steps in (8, 4):  # one LoRA in either role
        assert spoilt["error"][f"base + few-step@{steps}"] == spoilt["error"][f"collection@{steps}"]
    assert kept["error"]["truth@ae"]["mean"] < kept["error"]["base@40"]["mean"]
    assert ("general edits, collection@4", 4, 4) in calls


def test_an_edit_is_measured_only_where_its_words_leave_nothing_open(images):
    picture = next(iter(load_folder(images).values()))
    edits = [unique_edit(picture, 0, "one", k) for k in range(8)]
    for edit, result in edits:
        assert np.array_equal(edit.apply(picture, np.random.default_rng(9)), result)
        assert not np.array_equal(result, picture)
    assert len({edit.instruction for edit, _ in edits}) > 4
    assert unique_edit(picture, 0, "one", 3)[0].instruction == edits[3][0].instruction


def test_too_many_pictures_are_refused(images):
    with pytest.raises(ValueError, match="999 pictures an effect: must be from 2 to 40"):
        judge_general(None, None, images, 999)


def test_pictures_of_one_photograph_are_refused(images, tmp_path):
    for name in ("chelsea", "coffee"):
        shutil.copy(images / f"{name}.webp", tmp_path)
    (tmp_path / PHOTOGRAPHS).write_text('{"chelsea": "cup", "coffee": "cup"}')
    with pytest.raises(ValueError, match="not all of 'cup'"):
        judge_general(None, None, tmp_path, 2)
