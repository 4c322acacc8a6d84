"""Roles on a small Qwen-Image-Edit transformer: deltas and gradients are PEFT's, teachers mix in a batch."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import Tensor, nn

from collectionlora.training.lora import PAPER_TARGETS, LoraAdapter, TeacherStack, target_shapes
from collectionlora.training.randomness import generator
from collectionlora.training.roles import Roles

diffusers = pytest.importorskip("diffusers")


def adapter(net: nn.Module, seed: int, rank: int = 3) -> LoraAdapter:
    made = LoraAdapter.create(target_shapes(net, PAPER_TARGETS), rank, alpha=2.0, seed=seed)
    for path, parameter in made.up.items():
        nn.init.normal_(parameter, std=0.3, generator=generator(seed, path))
    return made


def transformer() -> nn.Module:
    net: nn.Module = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    for number, parameter in enumerate(net.parameters()):
        nn.init.normal_(parameter, std=0.08, generator=generator(number))
    return net.requires_grad_(False)


def velocity(net: nn.Module, size: int = 2) -> Tensor:
    return net(
        hidden_states=torch.randn(size, 8, 64, generator=generator(1)),
        encoder_hidden_states=torch.randn(size, 3, 32, generator=generator(2)),
        timestep=torch.linspace(0.2, 0.9, size),
        img_shapes=[[(1, 2, 2), (1, 2, 2)]] * size,
        return_dict=False,
    )[0]


def test_forward_and_gradients_equal_peft_on_a_small_qwen_image_edit() -> None:
    net = transformer()
    student = adapter(net, 1, rank=4)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=list(PAPER_TARGETS))
    reference = peft.inject_adapter_in_model(config, copy.deepcopy(net))
    weights = student.weights()
    layers = {path: reference.get_submodule(path) for path in student.shapes}
    for path, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(weights.down[path])
        layer.lora_B["default"].weight.data.copy_(weights.up[path])
    expected = velocity(reference)
    expected.square().sum().backward()
    with Roles(net, {"student": student}) as roles, roles.use("student"):
        output = roles.guard(velocity(net))
        output.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for path, layer in layers.items():
        key = path.replace(".", "/")
        for ours, theirs in ((student.down[key], layer.lora_A), (student.up[key], layer.lora_B)):
            truth = theirs["default"].weight.grad
            if truth is None:  # the last block's text branch has no way to the output
                assert ours.grad is None
            else:
                torch.testing.assert_close(ours.grad, truth, rtol=0, atol=1e-5 * truth.abs().max().item())


def test_checkpointing_of_a_small_qwen_image_edit_leaves_the_gradients_as_they_are() -> None:
    net = transformer()
    student = adapter(net, 1, rank=4)
    found = []
    with Roles(net, {"student": student}) as roles, roles.use("student"):
        for checkpointed in (False, True):
            if checkpointed:
                net.enable_gradient_checkpointing()  # type: ignore[operator]
            student.zero_grad()
            roles.guard(velocity(net)).square().mean().backward()
            found.append({n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_mixed_teachers_of_a_small_qwen_image_edit_equal_each_alone() -> None:
    net = transformer()
    teachers = {name: adapter(net, seed) for seed, name in enumerate(("frost", "neon"), 3)}
    stack = TeacherStack.of({name: made.weights() for name, made in teachers.items()})
    with Roles(net, teachers) as roles, torch.no_grad():
        with roles.use_teachers(stack, stack.index(["neon", "frost"])):
            together = velocity(net)
        for i, name in enumerate(("neon", "frost")):
            with roles.use(name):
                torch.testing.assert_close(together[i], velocity(net)[i], rtol=1e-5, atol=1e-5)
