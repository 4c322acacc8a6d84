"""A run goes on from a state of its own alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from collectionlora.training.checkpoint import CheckpointError, load_state
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


def test_a_run_that_has_learnt_nothing_may_go_on_with_other_settings(project: Any, host: Any) -> None:
    """As one whose first cycle did not fit is told to."""

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    with DistillationRun(read_run(project.write()), host) as job:
        job.prepare()
        job.trainer.distiller.velocity = full
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            next(job.train())
    assert load_state(job.run.checkpoint)["cycle"] == 0
    project.settings["distill"]["rank"] = 1
    with DistillationRun(read_run(project.write()), host) as job:
        job.check_resumable()
    whole(project, host, resume=True)
    project.settings["distill"]["rank"] = 2
    job, refused = DistillationRun(read_run(project.write()), host), "made with rank = 1 where this run has 2"
    with job, pytest.raises(CheckpointError, match=refused):
        job.check_resumable()
