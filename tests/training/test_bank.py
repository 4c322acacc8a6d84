"""The teacher bank: right weights, few reads, and files that are wrong refused at the start."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from collectionlora.collection.errors import LoraFormatError
from collectionlora.training.bank import TeacherBank
from collectionlora.training.randomness import generator

MODULES = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.2")
SHAPES = {MODULES[0]: (6, 6), MODULES[1]: (6, 12)}
NAMES = ("frost", "neon", "comic", "clay")


def tensors(seed: int, rank: int, modules: tuple[str, ...] = MODULES) -> dict[str, Tensor]:
    """A LoRA in ComfyUI's layout."""
    found = {}
    for module in modules:
        out, into = SHAPES[module]
        for part, shape in (("lora_A", (rank, into)), ("lora_B", (out, rank))):
            key = f"diffusion_model.{module}.{part}.weight"
            found[key] = torch.randn(shape, generator=generator(seed, key))
    return found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for seed, name in enumerate(NAMES):
        save_file(tensors(seed, rank=1 + seed), tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in NAMES}


def delta(file: Path, module: str, scale: float = 1.0) -> Tensor:
    lora = load_file(file)
    prefix = f"diffusion_model.{module}"
    return scale * lora[f"{prefix}.lora_B.weight"] @ lora[f"{prefix}.lora_A.weight"]


def test_stack_holds_each_named_teacher_once(files: dict[str, Path]) -> None:
    stack = TeacherBank(files, SHAPES).stack(["clay", "frost", "clay"])
    assert stack.names == ("clay", "frost")
    for module in MODULES:
        assert stack.down[module].shape[:2] == (2, 4)
        for e, name in enumerate(stack.names):
            found = stack.up[module][e] @ stack.down[module][e]
            torch.testing.assert_close(found, delta(files[name], module))


def test_a_mac_has_no_streams(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its device is then the accelerator that torch would look for the current stream of."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert TeacherBank(files, SHAPES).stack(["frost"]).names == ("frost",)


def test_alpha_is_respected_and_missing_modules_are_zero(files: dict[str, Path]) -> None:
    lora = tensors(9, rank=4, modules=MODULES[:1])
    lora[f"diffusion_model.{MODULES[0]}.alpha"] = torch.tensor(2.0)
    save_file(lora, files["neon"])
    stack = TeacherBank(files, SHAPES).stack(["neon", "frost"])
    found = stack.up[MODULES[0]][0] @ stack.down[MODULES[0]][0]
    torch.testing.assert_close(found, delta(files["neon"], MODULES[0], scale=0.5))
    assert not stack.up[MODULES[1]][0].any()


def test_teachers_come_in_the_dtype_asked_for(files: dict[str, Path]) -> None:
    stack = TeacherBank(files, SHAPES, dtype=torch.bfloat16).stack(["frost"])
    assert {tensor.dtype for tensor in (*stack.down.values(), *stack.up.values())} == {torch.bfloat16}


def test_a_file_that_changes_during_the_run_is_not_learned_from(files: dict[str, Path]) -> None:
    bank = TeacherBank(files, SHAPES, ram=1)
    assert len({*bank.hashes.values()}) == len(NAMES)
    before, content = bank.stack(["frost"]), files["frost"].read_bytes()
    save_file(tensors(7, rank=1), files["frost"])
    assert bank.stack(["frost"]) is before
    bank.stack(["neon"])
    for _ in range(2):
        with pytest.raises(LoraFormatError, match=r"frost\.safetensors: the teacher has changed since"):
            bank.stack(["frost"])
    files["frost"].write_bytes(content)  # the same, though of another time
    assert bank.stack(["frost"]).names == ("frost",)


def test_the_last_used_stay_in_ram_and_the_rest_is_read_again(files: dict[str, Path]) -> None:
    bank = TeacherBank(files, SHAPES, ram=2)
    for names in (["frost"], ["neon"], ["frost"], ["comic"], ["frost"]):  # neon is the one dropped
        bank.stack(names)
    assert (bank.stats.loads, bank.stats.hits) == (3, 2)
    bank.stack(["neon"])
    assert (bank.stats.loads, bank.stats.hits) == (4, 2)


def test_the_same_stack_asked_for_again_costs_nothing(files: dict[str, Path]) -> None:
    bank = TeacherBank(files, SHAPES)
    assert bank.stack(["frost", "neon"]) is bank.stack(["frost", "neon"])
    assert (bank.stats.loads, bank.stats.hits) == (2, 0)


def test_prefetched_teachers_are_read_once(files: dict[str, Path]) -> None:
    bank = TeacherBank(files, SHAPES)
    bank.prefetch(["frost", "neon"])
    bank.prefetch(["neon"])
    stack = bank.stack(["neon", "frost"])
    assert (bank.stats.loads, bank.stats.hits) == (2, 0)
    torch.testing.assert_close(
        stack.up[MODULES[0]][0] @ stack.down[MODULES[0]][0], delta(files["neon"], MODULES[0])
    )


def test_a_teacher_in_use_survives_its_file(files: dict[str, Path]) -> None:
    bank = TeacherBank(files, SHAPES)
    expected = bank.stack(["frost"]).up[MODULES[0]].clone()
    files["frost"].write_bytes(b"")
    bank.stack(["neon"])
    assert torch.equal(bank.stack(["frost"]).up[MODULES[0]], expected)


def test_a_failed_prefetch_is_reported_by_the_stack_and_can_be_tried_again(files: dict[str, Path]) -> None:
    bank = TeacherBank(files, SHAPES)
    whole = files["neon"].read_bytes()
    files["neon"].write_bytes(whole[:-1])
    bank.prefetch(["neon"])
    with pytest.raises(LoraFormatError, match=r"neon\.safetensors.*truncated"):
        bank.stack(["frost", "neon"])
    files["neon"].write_bytes(whole)
    assert bank.stack(["frost", "neon"]).names == ("frost", "neon")


def test_broken_weights_are_refused_when_first_used(files: dict[str, Path]) -> None:
    lora = tensors(0, rank=2)
    next(iter(lora.values()))[0, 0] = torch.nan
    save_file(lora, files["frost"])
    bank = TeacherBank(files, SHAPES)
    with pytest.raises(LoraFormatError, match=r"frost\.safetensors.*NaN"):
        bank.stack(["frost"])


def test_a_missing_file_is_refused_at_the_start(files: dict[str, Path]) -> None:
    files["frost"].unlink()
    with pytest.raises(LoraFormatError, match=r"frost\.safetensors: no such file"):
        TeacherBank(files, SHAPES)


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_truncated_file_is_refused_at_the_start(files: dict[str, Path], kept: int) -> None:
    files["neon"].write_bytes(files["neon"].read_bytes()[:kept])
    with pytest.raises(LoraFormatError, match=r"neon\.safetensors.*truncated"):
        TeacherBank(files, SHAPES)


def test_wrong_shapes_are_refused_naming_key_and_base(files: dict[str, Path]) -> None:
    larger = SHAPES | {MODULES[1]: (6, 24)}
    with pytest.raises(
        LoraFormatError,
        match=r"frost.*img_mlp\.net\.2\.lora_A\.weight' has shape \(1, 12\), expected \(rank, 24\)"
        r".*Qwen-Image-Edit of width 6",
    ):
        TeacherBank(files, larger)


def test_another_architecture_is_refused_naming_key_and_base(files: dict[str, Path]) -> None:
    key = "diffusion_model.double_blocks.0.img_attn.qkv.lora_{}.weight"
    save_file({key.format("A"): torch.zeros(2, 6), key.format("B"): torch.zeros(6, 2)}, files["comic"])
    with pytest.raises(LoraFormatError, match=r"comic.*double_blocks.*Qwen-Image-Edit of width 6"):
        TeacherBank(files, SHAPES)


def test_unknown_teachers_and_no_room_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="no teacher 'rain'"):
        TeacherBank(files, SHAPES).stack(["frost", "rain"])
    with pytest.raises(ValueError, match="ram must be at least 1"):
        TeacherBank(files, SHAPES, ram=0)


@pytest.mark.parametrize("closed", [True, False])
def test_a_bank_that_is_done_with_leaves_neither_teachers_nor_thread(
    files: dict[str, Path], closed: bool
) -> None:
    """In ComfyUI the next run finds the memory that this one took."""
    bank = TeacherBank(files, SHAPES)
    stack = weakref.ref(bank.stack(["frost"]))
    bank.prefetch(["neon"])
    thread, kept = next(iter(bank._thread._threads)), weakref.ref(bank)
    if closed:
        bank.close()
    else:
        del bank
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert stack() is None
    assert closed or kept() is None


def test_stacked_teachers_are_no_inference_tensors(files: dict[str, Path]) -> None:
    # a node runs under inference mode; what the thread makes must still be usable in training
    bank = TeacherBank(files, SHAPES)
    with torch.inference_mode():
        bank.prefetch(["frost"])
    stack = bank.stack(["frost"])
    assert not any(tensor.is_inference() for tensor in (*stack.down.values(), *stack.up.values()))
    linear = nn.Linear(6, 6)
    (linear(torch.ones(1, 6)) @ stack.up[MODULES[0]][0]).sum().backward()
