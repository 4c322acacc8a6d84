"""What would end a run after hours of teacher images ends it before anything is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from collectionlora.collection.errors import CollectionError
from collectionlora.training.config import ConfigError
from collectionlora.training.prepare import DataError
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import read_run


def few_sources(project: Any, host: Any) -> None:
    host.text_sees_image = True


def one_name(project: Any, host: Any) -> None:
    project.lists["effects"][1]["lora_name"] = "Frost"
    for row in project.lists["data"]:
        row["lora_name"] = row["lora_name"].replace("neon", "Frost")


def one_tag(project: Any, host: Any) -> None:
    for row in project.lists["effects"][:2]:
        row["recaption_prompt_with_trigword"] = f"make it {row['lora_name']}"


def trigger_alone(project: Any, host: Any) -> None:
    project.lists["effects"][0]["prompt"] = "<sks>"


def long_title(project: Any, host: Any) -> None:
    project.settings["titles"] = {"neon": "neon " * 30}


def long_category(project: Any, host: Any) -> None:
    project.lists["effects"][2]["data_type"] = "animal" * 20


def tab(project: Any, host: Any) -> None:
    project.lists["effects"][0]["recaption_prompt"] = "a frosty\twindow"


def general_picture(project: Any, host: Any) -> None:
    (project.folder / "general.png").write_bytes(b"no picture")
    project.lists["general"].append({"source_image": "general.png", "instruction": "blur it"})


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (few_sources, DataError, "names 2 different sources"),
        (one_name, CollectionError, "effects 1 and 2 have the same name 'frost'"),
        (one_tag, DataError, "effects 'frost' and 'neon' have the same tag 'make'"),
        (trigger_alone, ValueError, "'<sks>' says nothing to caption; give its effect a recaption_prompt"),
        (long_title, CollectionError, "effect 'neon': title has 150 characters, more than 120"),
        (long_category, CollectionError, "effect 'comic': category has 120 characters, more than 64"),
        (tab, CollectionError, r"effect 'frost': prompt holds the control character U\+0009"),
        (general_picture, ValueError, r"general\.png is not a readable picture"),
    ],
)
def test_what_would_end_a_run_after_its_teacher_images_ends_it_before(
    project: Any, host: Any, damage: Callable[[Any, Any], None], kind: type[Exception], message: str
) -> None:
    damage(project, host)
    with pytest.raises(kind, match=message), DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
    assert host.evaluations == 0
    assert not (project.folder / "out" / "teacher_images").exists()


def test_8_bit_adam_without_its_package_says_what_to_install_before_anything_is_made(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    project.settings["distill"]["optimizer"] = "adamw8bit"
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        DistillationRun(read_run(project.write()), host)
