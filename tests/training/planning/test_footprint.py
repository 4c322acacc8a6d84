"""Predicted bytes and operations are those of real models, counted on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from collectionlora.pocket import TRANSFORMER
from collectionlora.training.bank import TeacherBank
from collectionlora.training.config import distillation
from collectionlora.training.distiller import FAKE, STUDENT
from collectionlora.training.hosts.diffusers import EditVelocity, pocket_transformer
from collectionlora.training.hosts.fused import fuse
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.lora import LoraAdapter, TeacherStack, linear_shapes, target_shapes
from collectionlora.training.optimizer import make_optimizer
from collectionlora.training.planning.architecture import Architecture, Tokens
from collectionlora.training.planning.footprint import (
    BF16,
    FP8,
    Job,
    Setting,
    Storage,
    activation_bytes,
    base_bytes,
    device_bytes,
    disk_bytes,
    kept_bytes,
    locked_bytes,
    moment_bytes,
    ram_bytes,
    ways_bytes,
)
from collectionlora.training.planning.plan import passes
from collectionlora.training.roles import Roles
from collectionlora.training.run_config import CHECKPOINTING
from collectionlora.training.trainer import Trainer

SMALL = Architecture(4, 6, 32, 80, 64, 16)
SIDE, TEXT, BATCH, RANK = 256, 48, 2, 8
FLOAT32 = Storage("float32", weight=4, item=4)
STORAGES = [pytest.param(FLOAT32, id="float32"), pytest.param(BF16, id="bf16")]


def transformer(storage: Storage = FLOAT32, checkpointing: str = "none") -> nn.Module:
    """SMALL as diffusers builds it."""
    model = QwenImageTransformer2DModel(patch_size=2, axes_dims_rope=(8, 12, 12), **vars(replace(SMALL)))
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # that parts of other models want float32
    model = model.to(dtype(storage)).eval().requires_grad_(False)
    fuse(model, checkpointing)
    return model


def dtype(storage: Storage) -> torch.dtype:
    return torch.bfloat16 if storage.item == 2 else torch.float32


def job(**values: Any) -> Job:
    config = distillation({"rank": RANK, "alpha": 1.0, **values})
    return Job(config, SMALL, side=SIDE, text=TEXT, teacher_rank=3, storages=(FLOAT32,))


def bytes_of(tensors: Any) -> int:
    """Of distinct storages; counters of steps, which are scalars on the CPU, are left out."""
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.dim()}
    return sum(stored.values())


@contextmanager
def student(model: nn.Module, rank: int = RANK, over: TeacherStack | None = None) -> Iterator[LoraAdapter]:
    """An adapter on the paper's targets, in use; on each sample's own teacher, if there are any."""
    adapter = LoraAdapter.create(target_shapes(model, distillation().targets), rank, 1.0, 0)
    with Roles(model, {STUDENT: adapter}) as roles:
        each = torch.arange(BATCH)
        with roles.use(STUDENT) if over is None else roles.use_teachers(over, each, STUDENT):
            yield adapter


LENGTHS = [pytest.param(None, id="one length"), pytest.param([TEXT, TEXT - 16], id="two lengths")]


def tolerance(lengths: list[int] | None) -> float:
    """Copies of one sample's query, key and value are not planned for."""
    return 0.05 if lengths is None else 0.08


def evaluation(model: nn.Module, storage: Storage, lengths: list[int] | None = None) -> Callable[[], Tensor]:
    """One forward of a batch."""
    draw = torch.Generator().manual_seed(0)
    latent = (BATCH, SMALL.in_channels // 4, SIDE // 8, SIDE // 8)
    x, source, text = (
        torch.randn(shape, generator=draw).to(dtype(storage))
        for shape in (latent, latent, (BATCH, TEXT, SMALL.joint_attention_dim))
    )
    sigma = torch.rand(BATCH, generator=draw).to(dtype(storage))
    velocity = EditVelocity(model)
    return lambda: velocity(x, sigma, text, source, lengths)


def live_bytes(run: Callable[[], object]) -> int:
    """The largest sum of what was allocated during a run and not yet freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


# -- architecture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [SMALL, Architecture.of(TRANSFORMER), Architecture(num_layers=2)])
def test_an_architecture_has_the_linears_and_parameters_of_the_model(architecture: Architecture) -> None:
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(patch_size=2, **vars(replace(architecture)))
    assert dict(architecture.linears) == linear_shapes(model)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert architecture.weights + architecture.other_parameters == numbers
    assert Architecture.of(model.config) == architecture
    assert Architecture.found_in(model) == architecture


def test_other_models_are_no_qwen_image(tiny: Any) -> None:
    assert Architecture.found_in(tiny.Net()) is None
    model = transformer()
    model.transformer_blocks[1].extra = nn.Linear(2, 2)
    assert Architecture.found_in(model) is None
    with pytest.raises(ValueError, match="no Qwen-Image transformer's configuration: num_layers"):
        Architecture.of({**TRANSFORMER, "num_layers": "5"})


# -- weights and states --------------------------------------------------------------------------------------


def test_the_base_is_as_large_as_its_tensors() -> None:
    for storage in (FLOAT32, BF16):
        assert base_bytes(SMALL, storage) == bytes_of(transformer(storage).parameters())
    model = transformer(BF16)
    for path in linear_shapes(model):
        linear = model.get_submodule(path)
        linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert base_bytes(SMALL, FP8) == bytes_of(model.parameters())
    blocks = model.transformer_blocks
    absent = bytes_of(p for block in blocks[1:] for p in block.parameters() if p.dtype.itemsize == 1)
    assert base_bytes(SMALL, FP8) - base_bytes(SMALL, replace(FP8, blocks=1)) == absent
    assert base_bytes(SMALL, replace(FP8, blocks=9)) == base_bytes(SMALL, FP8)


@pytest.mark.parametrize(
    ("values", "roles", "part"),
    [
        ({}, (STUDENT, FAKE), "student and fake score"),
        ({"ema": 0.9}, (STUDENT, FAKE), "student and fake score"),
        ({"imitation_cycles": 3, "cycles": 3}, (STUDENT,), "student"),
    ],
)
def test_adapters_moments_gradients_and_the_kept_state_are_as_large_as_their_tensors(
    tiny: Any, values: dict[str, Any], roles: tuple[str, ...], part: str
) -> None:
    work = job(**values)
    model = transformer()
    shapes = target_shapes(model, work.config.targets)
    adapters = {role: LoraAdapter.create(shapes, RANK, 1.0, 0) for role in roles}
    distiller: Any = SimpleNamespace(roles=Roles(model, adapters))
    trainer = Trainer(distiller, tiny.lessons(), work.config)
    for role, adapter in adapters.items():
        for parameter in adapter.parameters():
            parameter.grad = torch.ones_like(parameter)
        trainer.optimizers[role].step()
    parts = device_bytes(work, Setting(FLOAT32))["backward"]
    parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
    assert parts[part] == bytes_of(parameters)
    moments = [t for o in trainer.optimizers.values() for state in o.state.values() for t in state.values()]
    assert parts["their moments"] == bytes_of(moments)
    assert parts["gradients"] == bytes_of([p.grad for p in adapters[STUDENT].parameters()])

    def tensors(state: Any) -> Iterator[Tensor]:
        for value in state.values() if isinstance(state, dict) else ():
            yield from [value] if isinstance(value, Tensor) else tensors(value)

    assert kept_bytes(work, Setting(FLOAT32)) == bytes_of(tensors(trainer._state()))


def test_ways_that_go_on_are_as_large_as_those_that_a_run_holds(tiny: Any, teachers: Any) -> None:
    values = {"imitation_cycles": 40, "cycles": 41}
    trainer = tiny.world(teachers, values).trainer
    held = 0
    for _ in trainer.run():
        held = max(held, bytes_of(way.x for ways in trainer.ways.held.values() for way in ways.values()))
    work = job(batch=trainer.config.batch, **values)
    own = tiny.LATENT[0] * tiny.LATENT[1] * tiny.LATENT[2]
    assert 0.6 < held / own / (ways_bytes(work) / work.latent) <= 1
    none = job(batch=trainer.config.batch, cycles=41)
    assert ways_bytes(none) == 0
    larger = disk_bytes(work, Setting())["state"] - disk_bytes(none, Setting())["state"]
    assert larger == 2 * ways_bytes(work)


def test_eight_bit_moments_are_as_large_as_their_tensors() -> None:
    pytest.importorskip("bitsandbytes")
    work = job(optimizer="adamw8bit")
    adapter = LoraAdapter.create(target_shapes(transformer(), work.config.targets), RANK, 1.0, 0)
    optimizer = make_optimizer(adapter, 1e-4, work.config)
    for parameter in adapter.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [
        t for one in optimizer.state.values() for n, t in one.items() if n.startswith(("state", "absmax"))
    ]
    assert moment_bytes(work.adapted, RANK, "adamw8bit") == bytes_of(state)


def test_eight_bit_moments_take_about_a_quarter() -> None:
    full = Job()
    ratio = moment_bytes(full.adapted, 32, "adamw8bit") / moment_bytes(full.adapted, 32, "adamw")
    assert 1 / 4 < ratio < 1 / 3.9


def two_teachers(folder: Path, of: torch.dtype) -> TeacherStack:
    """Of rank 3, as a bank brings them for a batch."""
    files = {name: folder / f"{name}.safetensors" for name in "ab"}
    for file in files.values():
        tensors = {}
        for path, (out, into) in target_shapes(transformer()).items():
            tensors[f"diffusion_model.{path}.lora_A.weight"] = torch.ones(3, into).bfloat16()
            tensors[f"diffusion_model.{path}.lora_B.weight"] = torch.ones(out, 3).bfloat16()
        save_file(tensors, file)
    return TeacherBank(files, linear_shapes(transformer()), dtype=of).stack("ab")


def test_teachers_on_the_device_are_as_large_as_the_banks_stack(tmp_path: Path) -> None:
    work, stack = job(), two_teachers(tmp_path, torch.float32)
    stacked = bytes_of([*stack.down.values(), *stack.up.values()])
    phases = device_bytes(work, Setting(FLOAT32, micro_batch=2))
    assert phases["backward"]["teachers"] == stacked
    assert phases["scoring"]["teachers"] == 2 * stacked


def test_a_matrix_in_locked_memory_takes_a_power_of_two() -> None:
    work = job()
    shapes = {"a": (3, 4), "b": (8, 5)}  # bytes, at rank 2 and two a number: 12, 16 and 32, 20

    assert locked_bytes(shapes, 2, 2) == 16 + 16 + 32 + 32
    assert ram_bytes(work, Setting())["teachers"] >= 2 * work.teacher * min(
        work.config.bank_ram, work.effects
    )


def test_a_teachers_image_is_as_large_as_its_latent_and_the_states_of_its_path() -> None:
    latent = PocketHost().encode_image(torch.zeros(1, 3, 128, 128))
    pocket = {"architecture": Architecture.of(TRANSFORMER), "side": 128, "samples": 7, "missing": 3}
    for anchor, states in (("image", 0), ("path", 8)):
        work = replace(job(objective={"anchor": anchor}), **pocket)
        size = bytes_of([latent, *(latent[i].half() for i in [0] * states)])
        assert disk_bytes(work, Setting())["teacher images"] == 3 * size


# -- activations ---------------------------------------------------------------------------------------------


def saved_bytes(model: nn.Module, storage: Storage, over: TeacherStack | None = None) -> int:
    """Distinct storages that autograd keeps of a batch, the model's own weights and rope tables left out."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if not tensor.is_complex():
            kept.append(tensor)
        return tensor

    with student(model, over=over) as adapter:
        own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *adapter.parameters()]}
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = evaluation(model, storage)()
        assert output.requires_grad
        return bytes_of(t for t in kept if t.untyped_storage().data_ptr() not in own)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_autograd_keeps_without_checkpointing_is_predicted(storage: Storage) -> None:
    predicted = activation_bytes(job(), Setting(storage, micro_batch=BATCH, checkpointing="none"))
    assert predicted == pytest.approx(saved_bytes(transformer(storage), storage), rel=0.03)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_autograd_keeps_with_checkpointing_is_predicted(storage: Storage) -> None:
    predicted = BATCH * SMALL.block_inputs(job().tokens, storage.item)
    assert predicted == pytest.approx(saved_bytes(transformer(storage, "full"), storage), rel=0.03)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_a_fake_score_over_teachers_keeps_of_them_is_planned_for(
    storage: Storage, tmp_path: Path
) -> None:
    model, stack = transformer(storage), two_teachers(tmp_path, dtype(storage))
    found = saved_bytes(model, storage, stack) - saved_bytes(model, storage)
    jobs = [job(objective={"fake_base": base}) for base in ("teacher", "base")]
    setting = Setting(storage, micro_batch=BATCH, checkpointing="none")
    over, without = (device_bytes(one, setting)["backward"]["teachers"] for one in jobs)
    # less: modulations and the first block's inputs lead back to nothing that is trained
    assert 0.7 * (over - without) < found <= over - without
    one, other = (device_bytes(each, replace(setting, micro_batch=1)) for each in jobs)
    assert one == other  # a batch of one picks nothing: it is the stack's own


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_peak_of_a_backward_is_predicted(
    storage: Storage, checkpointing: Any, lengths: list[int] | None
) -> None:
    model = transformer(storage, checkpointing)
    run = evaluation(model, storage, lengths)
    with student(model):

        def step() -> None:
            run().float().square().mean().backward()

        step()  # from now on gradients are there
        measured = live_bytes(step)
    parts = device_bytes(job(), Setting(storage, micro_batch=BATCH, checkpointing=checkpointing))["backward"]
    assert parts["activations"] + parts["workspace"] == pytest.approx(measured, rel=tolerance(lengths))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_peak_of_a_forward_without_gradient_is_predicted(
    storage: Storage, lengths: list[int] | None
) -> None:
    model = transformer(storage)
    run = evaluation(model, storage, lengths)
    with student(model), torch.no_grad():
        measured = live_bytes(run)
    predicted = device_bytes(job(), Setting(storage, micro_batch=BATCH))["scoring"]["workspace"]
    predicted += storage.item * job().adapter if storage.item < 4 else 0  # of one role
    assert predicted == pytest.approx(measured, rel=tolerance(lengths))


# -- operations ----------------------------------------------------------------------------------------------


def counted(run: Callable[[], object]) -> int:
    """FLOP; the counter does not know attention's kernels for CPUs by itself."""
    aten = torch.ops.aten
    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: _of_shapes(sdpa_flop, 3),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _of_shapes(sdpa_backward_flop, 4),
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        run()
    return counter.get_total_flops()


def _of_shapes(formula: Callable[..., int], tensors: int) -> Callable[..., int]:
    return lambda *args, **_: formula(*args[:tensors])


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_operations_are_those_counted(checkpointing: Any) -> None:
    model = transformer(checkpointing=checkpointing)
    run = evaluation(model, FLOAT32)
    each = passes(replace(job(), general=1), checkpointing)
    with student(model):
        with torch.no_grad():
            forward = counted(run)
        both = counted(lambda: run().sum().backward())
    assert BATCH * each.adapter == pytest.approx(forward, rel=0.01)
    assert BATCH * (each.adapter + each.recomputed + each.backward + each.scores) == pytest.approx(
        both, rel=0.03
    )
    with torch.no_grad():
        assert counted(run) == pytest.approx(BATCH * SMALL.operations(job().tokens).forward, rel=0.01)


def test_tokens_are_those_of_the_model() -> None:
    seen: list[tuple[int, ...]] = []
    model = pocket_transformer()
    model.img_in.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    latent = torch.zeros(1, 16, 16, 16)
    with torch.no_grad():
        EditVelocity(model)(latent, torch.ones(1), torch.zeros(1, 32, 64), latent)
    assert seen == [(1, Tokens.of(128, 32).image, 64)]
