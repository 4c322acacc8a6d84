"""A base of which a part waits in host memory, or that core moves by its own counsel (dynamic VRAM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .test_lending import DTYPES, KINDS


@pytest.fixture(scope="module")
def seen(run_inside: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return run_inside("streamed.py")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_model(seen: dict[str, Any], kind: str, dtype: str) -> None:
    one = seen[f"{kind} {dtype}"]
    assert one["waiting"] > 10
    assert 0.2 < one["loaded"] < 0.5
    assert one["difference"] == 0.0
    assert one["error"] == 0.0


def test_only_with_room_for_training_may_a_part_wait(seen: dict[str, Any]) -> None:
    assert "2 of 4 MiB are there, and training needs all of it" in seen["as a whole"]
    assert "--lowvram" in seen["as a whole"]
    assert seen["with room"] == f"lent, asked {[{'memory_required': 123}] * 2}"


def test_a_lora_on_a_base_that_does_not_fit_is_refused(seen: dict[str, Any]) -> None:
    """Where it would be in some of the weights and not in others the base could not be told from another."""
    assert "leave that LoRA out" in seen["with a LoRA"]


def test_wrong_gradients_are_found_before_the_run(seen: dict[str, Any]) -> None:
    assert "gradients through weights that ComfyUI brings to cpu are wrong" in seen["overwritten"]
    assert "--disable-async-offload" in seen["overwritten"]


def test_weights_that_autograd_saves_are_never_in_a_buffer(seen: dict[str, Any]) -> None:
    assert seen["norms"] == {"device": "meta", "inference": False, "copies": 1, "afterwards": "cpu"}


def test_in_dynamic_vram_training_has_a_model_of_its_own(seen: dict[str, Any]) -> None:
    """The same weights, loaded once more when the others have left the device, and gone afterwards."""
    assert seen["dynamic"] == {
        "twice": False,
        "its own": True,
        "name": "pocket-qwen-image-edit",
        "identity": True,
        "difference": 0.0,
        "while lent": [True],
        "after": False,
        "weights": ["meta"],
    }


def test_the_run_s_own_model_is_in_the_precision_that_its_loader_was_asked_for(seen: dict[str, Any]) -> None:
    assert seen["as asked"] == ["torch.float8_e4m3fn", "halved"]


def test_quantised_weights_that_wait_are_copied_out_of_their_file(seen: dict[str, Any]) -> None:
    found = seen["out of files"]
    assert found["weights"] > 10
    assert found["copied"]
    assert found["equal"]


def test_room_is_what_the_plan_holds_beside_the_base(seen: dict[str, Any]) -> None:
    room = seen["room"]
    assert room["on a CPU"] is None
    assert room["without a teacher"] == 0  # the run says what is wrong
    assert room["whole"]["base"] == room["size"]
    assert room["free"] == round(room["margin"] * room["whole"]["beside"] + room["reserve"])


def test_the_plan_counts_what_is_on_the_device(seen: dict[str, Any]) -> None:
    whole, half = seen["room"]["whole"], seen["room"]["half"]
    assert half["beside"] == whole["beside"]
    assert 0.5 * whole["base"] <= half["base"] <= 0.75 * whole["base"]  # whole blocks, of which it has five
    assert half["name"] == "as loaded, 50% of it on the device"
