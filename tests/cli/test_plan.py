"""`plan`: tables and JSON, from a file or from nothing, and errors that name field and remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from collectionlora import cli
from collectionlora.collection.file import load_collection, save_collection
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.pocket import FOLDER, TRANSFORMER
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.lora import linear_shapes
from collectionlora.training.planning.architecture import Architecture
from collectionlora.training.planning.cards import card
from collectionlora.training.planning.jobs import job_of
from collectionlora.training.run_config import read_run


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["plan", "--json", *arguments]) == cli.OK
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_a_card_and_a_size_make_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    content = planned(capsys, "--gpu", "80", "--preset", "one-gpu", "--size", "768")
    assert content["fits"]
    assert content["room_bytes"] == card(80).room
    assert content["hours"]["all"] == pytest.approx(content["hours"]["targets"] + content["hours"]["cycles"])
    assert set(content["setting"]) >= {"base", "optimizer", "micro_batch", "targets.batch", "checkpointing"}
    smaller = planned(capsys, "--gpu", "80", "--preset", "one-gpu", "--size", "512")
    assert smaller["hours"]["all"] < content["hours"]["all"]


def test_more_cards_take_fewer_hours(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (planned(capsys, "--gpu", "80", "--gpus", str(n)) for n in (1, 2))
    assert (one["gpus"], two["gpus"]) == (1, 2)
    assert one["hours"]["all"] / 2 <= two["hours"]["all"] < 0.6 * one["hours"]["all"]
    assert cli.main(["plan", "--gpu", "80", "--gpus", "2"]) == cli.OK
    assert "on 2 of H100" in capsys.readouterr().out


def test_effects_and_pictures_are_teacher_images(capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--gpu", "80", "--preset", "one-gpu")  # both with the base in the same precision
    few = planned(capsys, *where, "--effects", "2", "--pictures", "5")
    many = planned(capsys, *where, "--effects", "4", "--pictures", "10", "--general", "7")
    assert many["setting"] == few["setting"]
    assert many["hours"]["targets"] == pytest.approx(4 * few["hours"]["targets"])
    assert many["disk_bytes"]["teacher images"] == 4 * few["disk_bytes"]["teacher images"]
    assert many["forward_equivalents"] < few["forward_equivalents"]  # general samples have fewer terms


def test_a_table_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--gpu", "24"]) == cli.OK
    assert "GiB are missing" in capsys.readouterr().out


def test_a_file_is_read_with_its_lists_and_teachers(pocket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    content = planned(capsys, pocket.config, "--gpu", "16")
    assert content["fits"]
    assert content["setting"]["base"] == "float32"  # the pocket's
    assert content["setting"]["micro_batch"] == 2
    pocket.change("rank = 2", "rank = 4")
    wider = planned(capsys, pocket.config, "--gpu", "16")["parts_bytes"]
    assert wider["student and fake score"] == 2 * content["parts_bytes"]["student and fake score"]
    assert content["hours"]["targets"] > 0
    pocket.change("warm_cycles = 1", "warm_cycles = 0")
    pocket.change("ts_steps = 1", "ts_steps = 1\nts_weight = 0.0\nfm_weight = 0.0")
    assert planned(capsys, pocket.config, "--gpu", "16")["hours"]["targets"] == 0


def test_a_file_whose_run_would_be_refused_has_no_plan(pocket: Any, fails: Any) -> None:
    pocket.change("warm_cycles = 1", "warm_cycles = 0\nimitation_cycles = 2")
    assert "imitation alone teaches no few steps" in fails(
        cli.BAD_INPUT, "plan", pocket.config, "--gpu", "16"
    )


def test_modules_that_only_the_extended_collection_has_are_counted(
    pocket: Any, collection: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def parts(path: Path) -> dict[str, Any]:
        config.write_text(f'extend = "{path}"\n{asked}')
        found: dict[str, Any] = planned(capsys, pocket.config, "--gpu", "16")["parts_bytes"]
        return found

    config = Path(pocket.config)
    asked = config.read_text()
    plain = parts(collection)["student and fake score"]
    shapes = linear_shapes(PocketHost(weights).transformer)
    held, catalogue = load_collection(collection, shapes)
    out, into = shapes["img_in"]
    wider = LoraWeights(
        {**held.down, "img_in": torch.ones(2, into)},
        {**held.up, "img_in": torch.ones(out, 2)},
        {**held.alpha, "img_in": 2.0},
    )
    save_collection(pocket.folder / "wider.safetensors", wider, catalogue)
    more = parts(pocket.folder / "wider.safetensors")["student and fake score"]
    assert more == plain + 2 * 4 * 2 * (out + into)  # two adapters, float32, rank 2


def test_a_few_step_lora_that_the_extended_collection_holds_is_counted_as_such(tmp_path: Path) -> None:
    own = read_run(FOLDER / "collection.toml")
    shapes = Architecture.of(TRANSFORMER).linears
    weights, catalogue = load_collection(FOLDER / "weights" / "collection.safetensors", shapes)
    held = tmp_path / "held.safetensors"
    save_collection(held, weights, replace(catalogue, training=catalogue.training | {"few_step_rank": 8}))
    job = job_of(replace(own, few_step=None, extend=held))
    assert job.few_step_rank == job_of(own).few_step_rank == 8
    assert job.config.rank == own.distill.rank


def test_a_folder_is_known_by_its_configuration(
    pocket: Any, fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pocket.folder / "qwen"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    pocket.change('base = "base"', 'base = "qwen"\nlong_side = 256')
    assert "config.json: cannot be read" in fails(cli.BAD_INPUT, "plan", pocket.config, "--gpu", "16")
    sizes = {"num_layers": 5, "num_attention_heads": 6, "attention_head_dim": 32, "joint_attention_dim": 64}
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**sizes, "in_channels": 64}))
    assert "out_channels missing or wrong" in fails(cli.BAD_INPUT, "plan", pocket.config, "--gpu", "16")
    config.write_text(json.dumps({**sizes, "in_channels": 64, "out_channels": 16}))
    content = planned(capsys, pocket.config, "--gpu", "16")
    assert content["setting"]["base"] == "bf16"
    larger = planned(capsys, pocket.config, "--gpu", "16", "--size", "512")
    assert larger["disk_bytes"]["teacher images"] == 4 * content["disk_bytes"]["teacher images"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "40"], ["gpu = 40", "16, 24, 32, 48, 80"]),
        (["--gpu", "24", "--gpus", "0"], ["--gpus = 0", "at least 1"]),
        (["--gpu", "24", "--effects", "0"], ["--effects = 0", "at least 1"]),
        (["--gpu", "24", "--general", "-1"], ["--general = -1", "at least 0"]),
        (["--gpu", "24", "--size", "8"], ["--size = 8", "from 64 to 4096"]),
        (["--gpu", "24", "--preset", "few-steps"], ["goes on from a collection", "name a run file"]),
        (["--gpu", "24", "--preset", "one-gpus"], ["unknown preset 'one-gpus'", "did you mean 'one-gpu'"]),
    ],
)
def test_a_wrong_argument_is_named_with_the_remedy(arguments: list[str], said: list[str], fails: Any) -> None:
    message = fails(cli.BAD_INPUT, "plan", *arguments)
    assert all(words in message for words in said)


def test_what_the_file_says_is_not_said_twice(pocket: Any, fails: Any) -> None:
    message = fails(cli.BAD_INPUT, "plan", pocket.config, "--gpu", "24", "--effects", "3")
    assert "--effects" in message
    assert "says that already" in message


def test_imitation_without_a_file_stands_on_a_few_step_lora(capsys: pytest.CaptureFixture[str]) -> None:
    content = planned(capsys, "--gpu", "80", "--preset", "imitation", "--size", "512")
    assert content["parts_bytes"]["LoRA below the student"] > 0
    assert content["forward_equivalents"] < 4.8  # no guidance on the student's own ways
