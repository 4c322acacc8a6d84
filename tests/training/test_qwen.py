"""The trainer on the architecture it is for: a Qwen-Image transformer of two thin layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from collectionlora.training.bank import TeacherBank
from collectionlora.training.config import distillation
from collectionlora.training.data import Lessons, Sample
from collectionlora.training.distiller import FAKE, STUDENT, Distiller
from collectionlora.training.lora import LoraAdapter, linear_shapes, target_shapes
from collectionlora.training.randomness import generator
from collectionlora.training.roles import Roles
from collectionlora.training.trainer import Trainer

diffusers = pytest.importorskip("diffusers")

CHANNELS, DEPTH = 4, 12
VALUES = {
    "cycles": 2,
    "batch": 2,
    "micro_batch": 2,
    "p_effect": 0.7,
    "fake_ratio": 1,
    "rank": 2,
    "alpha": 2.0,
    "lr": 1e-2,
    "fake_lr": 1e-2,
    "clip": 1e6,
}


def transformer(by_token: bool = False) -> nn.Module:
    """`by_token`: one that modulates the source's tokens by themselves, as later editions do."""
    model: nn.Module = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=DEPTH,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=by_token,
    )
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator(0, name))
    return model.eval().requires_grad_(False)


def draw(*key: str | int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator(1, *key))


def lessons(several: bool = False) -> Lessons:
    """`several`: pictures of several sizes, and prompts of several lengths."""

    def sample(effect: str | None, number: int) -> Sample:
        image, text = (CHANNELS, 4, 6), (3, DEPTH)
        name = effect or "general"
        student = (7 if several and effect == "neon" else 3, DEPTH)
        if several and number == 1:
            image = (CHANNELS, 4, 4)
        return Sample(
            effect,
            draw(name, number, "source", shape=image),
            draw(name, "student", shape=student),
            draw(name, "teacher", shape=text),
            draw("empty", shape=text),
            draw(name, number, "target", shape=image) if effect else None,
        )

    effects = {name: [sample(name, i) for i in range(2)] for name in ("frost", "neon")}
    return Lessons(effects, [sample(None, 0)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("qwen"), {}
    for name in ("frost", "neon"):
        tensors = {}
        for path, (out, into) in target_shapes(transformer()).items():
            tensors[f"transformer.{path}.lora_A.weight"] = draw(name, path, "A", shape=(2, into))
            tensors[f"transformer.{path}.lora_B.weight"] = 0.1 * draw(name, path, "B", shape=(out, 2))
        found[name] = folder / f"{name}.safetensors"
        save_file(tensors, found[name])
    return found


def made(files: dict[str, Path], checkpointing: bool) -> Trainer:
    from collectionlora.training.hosts.diffusers import EditVelocity

    model = transformer()
    if checkpointing:
        model.enable_gradient_checkpointing()
    return trainer_of(model, EditVelocity(model), files, lessons(), VALUES)


def trainer_of(
    model: nn.Module,
    velocity: Any,
    files: dict[str, Path],
    data: Lessons,
    values: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Trainer:
    config, shapes = distillation(values), target_shapes(model)
    adapters = {
        role: LoraAdapter.create(shapes, 2, 2.0, seed, dtype) for seed, role in enumerate((STUDENT, FAKE))
    }
    roles, bank = Roles(model, adapters).attach(), TeacherBank(files, linear_shapes(model), dtype=dtype)
    return Trainer(Distiller(velocity, roles, bank, config.objective), data, config)


def test_micro_batches_of_several_sizes_and_lengths_change_nothing(files):
    """Half as many evaluations as samples one by one, the same adapters."""
    from collectionlora.training.hosts.diffusers import EditVelocity
    from collectionlora.training.hosts.fused import fuse
    from collectionlora.training.hosts.ragged import padded

    def run(micro: int) -> tuple[list[Tensor], list[int], set[bool]]:
        model = transformer().double()
        fuse(model)
        inner, sizes, mixed = EditVelocity(model), [], set()

        def velocity(x: Tensor, sigma: Tensor, text: Any, source: Tensor) -> Tensor:
            words, lengths = padded(text)
            sizes.append(len(x))
            mixed.add(lengths is not None)
            output: Tensor = inner(x.double(), sigma.double(), words.double(), source.double(), lengths)
            return output

        values = {**VALUES, "batch": 6, "micro_batch": micro, "cycles": 3, "imitation_cycles": 1}
        trainer = trainer_of(model, velocity, files, lessons(several=True), values, torch.float64)
        list(trainer.run())
        adapters = trainer.student, trainer.trained["fake"]
        return [value for one in adapters for value in one.state_dict().values()], sizes, mixed

    alone, together = run(1), run(6)
    assert sum(alone[1]) == sum(together[1])
    assert len(together[1]) < 0.5 * len(alone[1])
    assert alone[2] == {False}
    assert together[2] == {False, True}
    for one, other in zip(alone[0], together[0], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


def test_a_run_trains_both_adapters_and_leaves_the_base_alone(files, tiny):
    trainer = made(files, checkpointing=False)
    base = trainer.distiller.roles.module
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    records = list(trainer.run())
    assert {term for record in records for term in record.values} == {"bs", "ts", "fm", "fake"}
    for adapter in (trainer.student, trainer.trained["fake"]):
        # the last block's words go nowhere, so their adapters learn nothing
        assert all(up.any() for path, up in adapter.up.items() if path.startswith("transformer_blocks/0"))
    assert tiny.same(dict(base.state_dict()), before)


def test_activation_checkpointing_changes_no_weight(files):
    plain, saving = made(files, checkpointing=False), made(files, checkpointing=True)
    for trainer in (plain, saving):
        list(trainer.run())
    for one, other in ((plain.student, saving.student), (plain.trained["fake"], saving.trained["fake"])):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_is_bit_identical(files, tiny, tmp_path):
    whole, first, second = (made(files, checkpointing=True) for _ in range(3))
    list(whole.run())
    next(first.run())
    first.save(tmp_path / "state.safetensors")
    second.resume(tmp_path / "state.safetensors")
    list(second.run())
    assert tiny.same(tiny.live(second), tiny.live(whole))


@pytest.mark.parametrize("by_token", [False, True])
def test_the_model_is_told_times_as_they_are(by_token: bool) -> None:
    """In ComfyUI it is; diffusers rounds them to the model's precision first."""
    from collectionlora.training.hosts.diffusers import EditVelocity

    model = transformer(by_token).bfloat16()
    told: list[Tensor] = []
    embed = model.time_text_embed.time_proj.register_forward_hook(lambda _, given, __: told.append(given[0]))
    sigma = torch.tensor([0.9545, 0.3])
    x, text = draw("x", shape=(2, CHANNELS, 4, 6)).bfloat16(), draw("t", shape=(2, 3, DEPTH)).bfloat16()
    EditVelocity(model)(x, sigma, text, x)
    embed.remove()
    expected = torch.cat([sigma, 0 * sigma]) if by_token else sigma
    assert torch.equal(told[0], expected)
