"""A run goes on from a state of its own alone."""

from __future__ import annotations

from typing import Any

import pytest

from collectionlora.training.checkpoint import CheckpointError
from collectionlora.training.run import DistillationRun
from collectionlora.training.run_config import read_run


def whole(project: Any, host: Any, resume: bool = False) -> None:
    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
        for _ in job.train(resume):
            pass


def test_resuming_with_other_prompts_is_refused(project: Any, host: Any) -> None:
    whole(project, host)
    project.lists["effects"][1]["recaption_prompt"] = "something else"
    with pytest.raises(
        CheckpointError, match=r"progress\.json: effect '\w+' was trained as '<.*, this run has '<"
    ):
        whole(project, host, resume=True)


def test_resuming_on_another_base_is_refused(project: Any, host: Any) -> None:
    whole(project, host)
    host.identity = "tiny, in 8 bits"
    with pytest.raises(CheckpointError, match=r"progress\.json: the run was trained on another base"):
        whole(project, host, resume=True)


def test_resuming_with_another_teacher_of_that_name_is_refused(project: Any, host: Any) -> None:
    whole(project, host)
    frost, neon = (project.folder / f"{name}.safetensors" for name in ("frost", "neon"))
    frost.write_bytes(neon.read_bytes())
    with pytest.raises(CheckpointError, match=r"progress\.json: the file of teacher 'frost' is not the one"):
        whole(project, host, resume=True)


def test_resuming_without_a_state_says_so(project: Any, host: Any) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint; start the run without resuming"):
        whole(project, host, resume=True)
    assert not (project.folder / "out" / "state.safetensors").exists()
