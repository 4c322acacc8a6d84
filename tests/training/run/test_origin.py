"""A state goes on only with what it has learnt from, and says so before any teacher image is made."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from collectionlora.training.checkpoint import CheckpointError
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import read_run


def begun(project: Any, host: Any, resume: bool = False) -> None:
    """Train to the end; going on, as the command line and the node do."""
    with DistillationRun(read_run(project.write()), host) as job:
        if resume:
            job.check_resumable()
        job.prepare()
        for _ in job.train(resume):
            pass


def refused(project: Any, host: Any, why: str) -> None:
    host.evaluations = 0
    with pytest.raises(CheckpointError, match=why):
        begun(project, host, resume=True)
    assert host.evaluations == 0


def test_a_run_with_other_teacher_steps_is_another_run(project: Any, host: Any) -> None:
    begun(project, host)
    project.settings["targets"]["steps"] += 1
    refused(project, host, "teachers were sampled in 3 steps with guidance")


def test_a_run_with_another_teacher_prompt_is_another_run(project: Any, host: Any) -> None:
    for entry in project.lists["effects"]:
        entry["recaption_prompt"] = "in a style"
    begun(project, host)
    name = project.lists["effects"][0]["lora_name"]
    for row in project.lists["data"]:
        if row["lora_name"] == name:
            row["instruction"] += " now!"
    refused(project, host, "was taught with the prompt 'do it', this run has 'do it now!'")


def test_a_run_on_pictures_of_another_size_is_another_run(
    project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(project, host)
    read = host.read_image
    monkeypatch.setattr(host, "read_image", lambda path: read(path)[:, :2])
    refused(project, host, "the run was trained on pictures of 6 x 4 pixels")


@pytest.mark.parametrize("changed", ["picture", "general picture", "instruction"])
def test_a_run_on_other_pictures_is_another_run(project: Any, host: Any, changed: str) -> None:
    begun(project, host)
    project.lists["data"].sort(key=lambda line: line["source_image"])  # effects mixed otherwise are no others
    project.settings["distill"]["cycles"] += 1
    begun(project, host, resume=True)
    other = project.picture("other.png")
    Image.new("RGB", Image.open(project.folder / other).size, "red").save(project.folder / other)
    if changed == "picture":
        project.lists["data"][0]["source_image"] = other
    elif changed == "general picture":
        project.lists["general"][1]["source_image"] = other
    else:
        project.lists["general"][1]["instruction"] = "sharpen it"
    name = project.lists["data"][0]["lora_name"]
    of = f"of effect '{name}'" if changed == "picture" else "or instructions of .* stream"
    refused(project, host, f"pictures {of} are not those that the run was trained on")
