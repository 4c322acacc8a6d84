"""The state of a run comes back bit for bit, or the file is refused by name."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from collectionlora.training.checkpoint import (
    KEY,
    VERSION,
    CheckpointError,
    copied,
    load_optimizer_state,
    load_state,
    optimizer_state,
    save_state,
)
from collectionlora.training.randomness import generator

STATE = {
    "cycle": 3,
    "config": {
        "lr": 0.1 + 0.2,
        "name": "a.b",
        "on": True,
        "none": None,
        "list": [1, [2.5, "x"], []],
        "empty": {},
    },
    "weights": {"down.a/b": torch.randn(2, 3, generator=generator(0)), "scalar": torch.tensor(7)},
    "optimizer": {
        0: {
            "step": torch.tensor(3.0),
            "state1": torch.arange(5, dtype=torch.uint8),
            "absmax1": torch.tensor([1e-30, float("inf"), -0.0]),
            "nested": {"qmap1": torch.randn(4, generator=generator(1), dtype=torch.float64), "bits": 8},
            "steps": 4,
            "beta": 0.999,
        },
        12: {"half": torch.randn(3, generator=generator(2)).bfloat16(), "none": torch.zeros(0, 4)},
    },
    "a": {"b": torch.ones(1)},
    "a.b": torch.zeros(2),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


def test_every_kind_of_value_survives_bit_for_bit(path, tiny):
    save_state(path, STATE)
    assert tiny.same(load_state(path), STATE)
    assert list(load_state(path)["optimizer"]) == [0, 12]  # numbers, in their order


def test_tensors_that_lie_oddly_in_memory_survive(path, tiny):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"transposed": base.T, "slice": base[:, 1], "again": base, "expanded": torch.ones(1).expand(3)}
    save_state(path, copied(state))
    assert tiny.same(load_state(path), state)


def test_no_number_is_lost_to_json(path):
    numbers = [math.pi, 1e-320, 2**63 - 1, -0.0, math.inf]
    save_state(path, {"numbers": numbers})
    found = load_state(path)["numbers"]
    assert [(type(n), repr(n)) for n in found] == [(type(n), repr(n)) for n in numbers]


def test_no_code_can_hide_in_a_checkpoint(path):
    save_state(path, STATE)
    with safe_open(path, "pt") as file:  # tensors and a JSON header: nothing is unpickled
        header = json.loads(file.metadata()[KEY])
    assert header["version"] == VERSION


def test_a_copy_is_not_changed_by_later_updates():
    tensor = torch.ones(2, requires_grad=True)
    state = {"a": [{"b": tensor}], "c": (1, 2)}
    copy = copied(state)
    with torch.no_grad():
        tensor.add_(1)
    assert copy["a"][0]["b"].tolist() == [1, 1]
    assert not copy["a"][0]["b"].requires_grad
    assert copy["c"] == [1, 2]


def test_a_copy_takes_the_memory_of_an_earlier_one_where_it_fits(tiny):
    old = copied({"a": [torch.zeros(2), torch.zeros(3)], "gone": torch.zeros(1), "c": torch.zeros(2)})
    state = {"a": [torch.ones(2), torch.ones(4)], "new": torch.ones(1), "c": torch.ones(2).double()}
    copy = copied(state, old)
    assert tiny.same(copy, state)
    assert copy["a"][0].data_ptr() == old["a"][0].data_ptr()


def test_a_loaded_state_does_not_hold_its_file(path, tiny):
    save_state(path, STATE)
    state = load_state(path)
    with path.open("r+b") as file:  # in place: would show in tensors that are mapped from it
        file.write(bytes(path.stat().st_size))
    assert tiny.same(state, STATE)


def test_an_optimizers_moments_survive(path, tiny):
    def made() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(torch.ones(3))
        return parameter, torch.optim.AdamW([parameter], lr=0.1)

    (one, first), (other, second) = made(), made()
    for value in (1.0, -2.0):
        one.grad = torch.full((3,), value)
        first.step()
    save_state(path, copied({"o": optimizer_state(first), "p": one}))
    state = load_state(path)
    load_optimizer_state(second, state["o"])
    other.data = state["p"]
    assert tiny.same(optimizer_state(second), optimizer_state(first))
    for parameter, optimizer in ((one, first), (other, second)):
        parameter.grad = torch.full((3,), 0.3)
        optimizer.step()
    assert torch.equal(one, other)
    load_optimizer_state(first, {})
    assert optimizer_state(first) == {}


class Odd(torch.optim.Optimizer):
    """Keeps state as 8-bit optimizers do: bytes, their scales, a count, and a nested table."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                state["bytes"] = (parameter.grad * 50).to(torch.uint8)
                state["quantised"] = {"absmax": parameter.grad.abs().max(), "blocks": 256, "signed": True}


def test_the_state_of_an_8_bit_optimizer_survives(path, tiny):
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer = Odd([parameter])
    optimizer.step()
    save_state(path, copied(optimizer_state(optimizer)))
    found = load_state(path)
    assert tiny.same(found, copied(optimizer_state(optimizer)))
    assert found[0]["bytes"].dtype == torch.uint8
    assert found[0]["quantised"]["signed"] is True


# -- wrong files --


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(path):
    refused(path, "no such checkpoint; start the run without resuming")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(keep, path):
    save_state(path, STATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    refused(path, "not a readable checkpoint")


def test_a_file_of_something_else(path):
    path.write_bytes(b"PK\x03\x04 not safetensors at all" * 10)
    refused(path, "not a readable checkpoint")
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(path, "not a readable checkpoint")


def test_a_safetensors_file_of_something_else(path):
    save_file({"a": torch.ones(1)}, path)
    refused(path, "no checkpoint of a distillation")
    save_file({"a": torch.ones(1)}, path, {KEY: "[1]"})
    refused(path, "no checkpoint of a distillation")
    save_file({"a": torch.ones(1)}, path, {KEY: "{ not json"})
    refused(path, "not a readable checkpoint")


def test_a_checkpoint_of_a_newer_program(path):
    save_file({}, path, {KEY: json.dumps({"version": VERSION + 1, "state": {"new": 1}})})
    refused(path, f"version {VERSION + 1}, this program reads {VERSION}")


@pytest.mark.parametrize(
    "state",
    [
        None,
        5,
        {},
        {"tensor": "lost"},
        {"dict": 5},
        {"dict": [["a"]]},
        {"odd": 1, "two": 2},
        {"odd": 1},
        {"value": 1},
    ],
)
def test_a_header_that_does_not_fit_its_tensors(state, path):
    save_file({}, path, {KEY: json.dumps({"version": VERSION, "state": state})})
    refused(path, "a damaged checkpoint")
