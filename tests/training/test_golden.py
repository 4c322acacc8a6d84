"""Every loss term equals the released code's numbers (see golden/README.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collectionlora.training import flow, losses

GOLDEN = json.loads((Path(__file__).parent / "golden" / "released_losses.json").read_text())
CASES = GOLDEN["cases"]
SIGMAS = (1.0, 0.954, 0.9, 0.833, 0.75, 0.642, 0.5, 0.3, 0.0)  # the released schedule, truncated as released
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def field(number: int) -> Tensor:
    i = torch.arange(12, dtype=torch.float64)
    return (1.2 * torch.cos(0.5 + 1.3 * number + 2.1 * i + 0.01 * i * i)).reshape(2, 2, 3)


def fields(offset: int) -> Tensor:
    return torch.stack([field(100 * i + offset) for i in range(len(CASES))])


def prompts(offset: int) -> Tensor:
    return fields(offset)[:, :, :1, :1]


def times(name: str) -> Tensor:
    return flow.shift(torch.tensor([case["case"][name] for case in CASES], dtype=torch.float64) / 1000)


class Stub(nn.Module):
    """v = tanh(mix x) + gain sigma x + prompt; mix and gain are per sample, so that gradients stay apart."""

    def __init__(self, mix: list[list[float]], gain: float) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor(mix, dtype=torch.float64).repeat(len(CASES), 1, 1))
        self.gain = nn.Parameter(torch.full((len(CASES),), gain, dtype=torch.float64))

    def forward(
        self, x: Tensor, sigma: Tensor, prompt: Tensor, active: Sequence[int] | None = None
    ) -> Tensor:
        rows = list(range(len(CASES)) if active is None else active)
        mixed = torch.einsum("boc,bchw->bohw", self.mix[rows], x)
        return torch.tanh(mixed) + (self.gain[rows] * sigma).reshape(-1, 1, 1, 1) * x + prompt[rows]

    def x0(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        return flow.x0_from_velocity(x, self(x, sigma, prompt), sigma)


class Method:
    """The terms put together as the released code does, from our functions, for all cases in one batch."""

    def __init__(self) -> None:
        self.student = Stub([[0.9, -0.4], [0.3, 0.7]], 0.35)
        self.fake = Stub([[0.5, 0.2], [-0.6, 1.1]], -0.25)
        self.real = Stub([[1.2, 0.1], [0.4, -0.8]], 0.15)
        self.teacher_prompt, self.student_prompt, self.no_prompt = prompts(1), prompts(2), prompts(3)
        self.y = fields(4)

    def rollout(self, depth: str) -> tuple[Tensor, Tensor]:
        """Noisy input of each case after its own number of steps, and its sigma."""
        depths = torch.tensor([case["case"][depth] for case in CASES])
        fresh = [iter([field(100 * i + 11 + k) for k in range(7)]) for i in range(len(CASES))]
        x = flow.rollout(
            lambda x, sigma, active: self.student(x, sigma, self.student_prompt, active),
            fields(10),
            SIGMAS,
            depths,
            fresh,  # type: ignore[arg-type]
        )
        return x, torch.tensor(SIGMAS, dtype=torch.float64)[depths]

    def dmd(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        x_t = flow.add_noise(x0.detach(), eps, t)
        x_real = losses.guided(
            self.real.x0(x_t, t, self.teacher_prompt), self.real.x0(x_t, t, self.no_prompt), weight=4.0
        )
        x_fake = self.fake.x0(x_t, t, self.student_prompt)
        return losses.dmd_loss(x0, losses.dmd_direction(x0, x_fake, x_real))

    def dmd_bs(self) -> Tensor:
        x, sigma = self.rollout("k")
        return self.dmd(self.student.x0(x, sigma, self.student_prompt), times("bs"), fields(20))

    def dmd_ts(self) -> Tensor:
        steps = torch.tensor(flow.seeded_sigmas(SIGMAS), dtype=torch.float64)
        sigma = steps[torch.tensor([case["case"]["ts_step"] for case in CASES])]
        x0 = self.student.x0(flow.add_noise(self.y, fields(30), sigma), sigma, self.student_prompt)
        return self.dmd(x0, times("ts"), fields(31))

    def ta_fm(self) -> Tensor:
        t = times("ta")
        v = self.student(flow.add_noise(self.y, fields(40), t), t, self.student_prompt)
        return losses.flow_matching_loss(v, self.y, fields(40))

    def student_loss(self) -> Tensor:
        return self.dmd_bs() + self.dmd_ts() + self.ta_fm()

    def fake_loss(self) -> Tensor:
        x, sigma = self.rollout("fake_k")
        x0 = self.student.x0(x, sigma, self.student_prompt).detach()
        t = times("fake")
        v = self.fake(flow.add_noise(x0, fields(50), t), t, self.student_prompt)
        return losses.flow_matching_loss(v, x0, fields(50))


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Iterator[Method]:
    # each sample's "generator" is a list of the fixed noises
    monkeypatch.setattr(flow, "noise_like", lambda x, fresh: torch.stack([next(noises) for noises in fresh]))
    return Method()


def assert_golden(loss: Tensor, network: Stub, name: str) -> None:
    loss.sum().backward()
    golden: list[dict[str, Any]] = [case[name] for case in CASES]
    for ours, key in ((loss, "loss"), (network.mix.grad, "mix"), (network.gain.grad, "gain")):
        theirs = torch.tensor([case[key] for case in golden], dtype=torch.float64)
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("dmd_bs", "dmd_bs"), ("dmd_ts", "dmd_ts"), ("ta_fm", "ta_fm"), ("student_loss", "student")],
)
def test_student_term_and_gradient_equal_the_released_ones(method: Method, ours: str, theirs: str) -> None:
    assert_golden(getattr(method, ours)(), method.student, theirs)


def test_fake_score_loss_and_gradient_equal_the_released_ones(method: Method) -> None:
    assert_golden(method.fake_loss(), method.fake, "fake")


def test_partial_rollout_equals_the_full_released_one_at_its_step(method: Method) -> None:
    x, sigma = method.rollout("k")
    theirs = torch.tensor([case["rollout"] for case in CASES], dtype=torch.float64)
    torch.testing.assert_close(x.flatten(1), theirs, **CLOSE)
    assert (sigma * 1000).tolist() == [case["rollout_time"] for case in CASES]


@pytest.mark.parametrize(
    ("raw", "shifted"), [("bs", "t_bs"), ("ts", "t_ts"), ("ta", "t_ta"), ("fake", "t_fake")]
)
def test_shifted_times_equal_the_released_ones(raw: str, shifted: str) -> None:
    theirs = torch.tensor([case[shifted] for case in CASES], dtype=torch.float64)
    torch.testing.assert_close(1000 * times(raw), theirs, **CLOSE)


def test_direction_where_the_divisor_vanishes_equals_the_released_one() -> None:
    x0 = field(900)[None]
    x_fake = x0.clone()
    x_fake[..., 0, 0] += 1
    x_fake[..., 1, 1] -= 1
    ours = losses.dmd_direction(x0, x_fake, x0)
    assert ours.flatten().tolist() == GOLDEN["degenerate"]
