"""Runs in ComfyUI's Python: a model is lent for training and given back.

usage: lending.py   (prints one line of JSON: kind and precision -> what was seen)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import torch  # noqa: E402
from comfy import model_management  # noqa: E402
from comfy.ops import QuantizedTensor  # noqa: E402

from collectionlora.training.hosts.comfy import ComfyHost  # noqa: E402
from collectionlora.training.hosts.comfy_pocket import pocket_clip, pocket_vae  # noqa: E402
from collectionlora.training.lora import LoraAdapter, TeacherStack, linear_shapes  # noqa: E402
from collectionlora.training.roles import Roles  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from models import DTYPES, KINDS, random_model  # noqa: E402

RANK = 4


def snapshot(model: torch.nn.Module) -> dict[str, Any]:
    """Everything of a model and of the process that training might change."""
    return {
        "bytes": {
            n: t.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            for n, t in {**model.state_dict(), **dict(model.named_parameters())}.items()
            if not isinstance(t, QuantizedTensor)  # the state dict has its parts
        },
        "objects": {n: (id(p), _place(p), p.requires_grad, p.dtype) for n, p in model.named_parameters()},
        "modules": {
            n: (id(m), sorted(m.__dict__), id(type(m)), getattr(m.forward, "__func__", None), m.training)
            for n, m in model.named_modules()
        },
        "hooks": {
            n: tuple(len(h) for key, h in m.__dict__.items() if key.endswith("_hooks") and h is not None)
            for n, m in model.named_modules()
        },
        "process": (
            model_management.in_training,
            model_management.training_fp8_bwd,
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.get_rng_state().numpy().tobytes(),
        ),
    }


def _place(parameter: torch.Tensor) -> int:
    data = getattr(parameter, "_qdata", parameter)  # of a quantised weight
    return int(data.data_ptr())


def inputs(patcher: Any) -> tuple[torch.Tensor, ...]:
    """x, sigma, text and source of two samples."""
    channels = patcher.model.latent_format.latent_channels
    generator = torch.Generator().manual_seed(3)
    x, source = (torch.randn(2, channels, 8, 8, generator=generator) for _ in range(2))
    context = patcher.model.diffusion_model.txt_in.in_features
    text = torch.randn(2, 7, context, generator=generator)
    return x, torch.tensor([0.8, 0.1]), text, source


def gradients(host: ComfyHost, patcher: Any, adapter: LoraAdapter, backward_out: bool) -> list[torch.Tensor]:
    """Of the adapter's parameters, for one fixed loss."""
    adapter.zero_grad()
    with Roles(patcher.model.diffusion_model, {"student": adapter}) as roles, roles.use("student"):
        v = host.velocity(*inputs(patcher))
        if backward_out:
            roles.guard(v).square().mean().backward()
    return [p.grad.clone() for p in adapter.parameters() if p.grad is not None]


def chosen_attention(
    host: ComfyHost, patcher: Any, adapter: LoraAdapter, expected: list[torch.Tensor]
) -> float:
    """The user has chosen an attention that has no backward; the gradients' largest error."""
    options = patcher.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = lambda own, *args, **kwargs: own(*args, **kwargs).detach()
    found = gradients(host, patcher, adapter, True)
    del options["optimized_attention_override"]
    return max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))


def teachers_apart(host: ComfyHost, patcher: Any) -> float:
    """Two samples with a teacher each, and each of them alone: their largest difference."""
    adapters = {"one": adapter_for(patcher), "other": adapter_for(patcher, seed=8)}
    stack = TeacherStack.of({name: adapter.weights() for name, adapter in adapters.items()})
    given = inputs(patcher)
    with torch.no_grad(), Roles(patcher.model.diffusion_model, adapters) as roles:
        with roles.use_teachers(stack, stack.index(list(adapters))):
            together = host.velocity(*given)
        differences = []
        for i, name in enumerate(adapters):
            with roles.use(name):
                alone = host.velocity(*(tensor[i : i + 1] for tensor in given))
            differences.append((together[i : i + 1] - alone).abs().max() / alone.abs().max())
    return max(map(float, differences))


def lengths_apart(host: ComfyHost, patcher: Any, adapter: LoraAdapter) -> float | str:
    """Prompts of two lengths in one batch, and each of them alone: the largest difference of outputs and
    gradients, also with an attention that the user has chosen; or how it is refused.
    """
    x, sigma, text, source = inputs(patcher)
    prompts, asked = [text[0], text[1, :4]], []

    def own(attend: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(args[0].shape[2])
        output: torch.Tensor = attend(*args, **kwargs)
        return output

    def learnt(parts: list[list[int]]) -> list[torch.Tensor]:
        adapter.zero_grad()
        outputs = []
        with Roles(patcher.model.diffusion_model, {"student": adapter}) as roles, roles.use("student"):
            for part in parts:
                v = host.velocity(x[part], sigma[part], [prompts[i] for i in part], source[part])
                roles.guard(v).square().sum().backward()
                outputs.append(v.detach())
            with torch.no_grad():
                outputs += [
                    host.velocity(x[part], sigma[part], [prompts[i] for i in part], source[part])
                    for part in parts
                ]
        grads = torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])
        return [torch.cat(outputs), grads]

    options = patcher.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = own
    try:
        expected, found = learnt([[0], [1]]), None
        lengths = set(asked)
        asked.clear()
        found = learnt([[0, 1]])
        assert set(asked) == lengths
    except ValueError as error:
        return str(error)
    finally:
        del options["optimized_attention_override"]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def adapter_for(patcher: Any, seed: int = 7) -> LoraAdapter:
    """Random in both halves: a fresh one has no gradient in its first."""
    shapes = linear_shapes(patcher.model.diffusion_model)
    adapter = LoraAdapter.create(shapes, RANK, RANK, seed=0)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.up.values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return adapter


def compare(kind: str, dtype: str) -> dict[str, Any]:
    """Lend a model whose weights are inference tensors; compare with one that autograd may save."""
    with torch.inference_mode():
        lent, clip, vae = random_model(kind, dtype), pocket_clip(), pocket_vae()
        other = random_model(kind, dtype)
        model_management.load_models_gpu([lent, other])
        before = snapshot(lent.model)
    host = ComfyHost(lent, clip, vae)
    with torch.inference_mode():
        loaded = model_management.current_loaded_models
        seen: dict[str, Any] = {"loaded": {"before": len(loaded)}}
        with host.lend():
            seen["loaded"]["while lent"] = ["the base" if one.model is lent else "another" for one in loaded]
            seen["identity"] = host.identity
            adapter = adapter_for(lent)
            ours = gradients(host, lent, adapter, True)
            seen["without a backward"] = chosen_attention(host, lent, adapter, ours)
            seen["teachers apart"] = teachers_apart(host, lent)
            seen["lengths apart"] = lengths_apart(host, lent, adapter)
            host.checkpointing = True
        with host.lend():
            again = gradients(host, lent, adapter, True)
        seen["checkpointed"] = max((a - b).abs().max().item() for a, b in zip(ours, again, strict=True))
        seen["restored"] = [part for part, value in snapshot(lent.model).items() if value != before[part]]
        ends: dict[str, list[str]] = {}
        for end in (ValueError, KeyboardInterrupt, model_management.InterruptProcessingException):
            try:
                with host.lend():
                    gradients(host, lent, adapter, True)
                    raise end("on purpose")
            except end:
                now = snapshot(lent.model)
                ends[end.__name__] = [part for part, value in now.items() if value != before[part]]
        seen["restored after"] = ends
    # Plain autograd through core's own modules, on ordinary tensors; FLUX's own writes over what it needs.
    plain = random_model(kind, dtype, inference=False)
    for module in plain.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args: (args[0].clone(),))
    reference = ComfyHost(plain, clip, vae)
    reference._loaded = True
    model_management.in_training = True
    theirs = gradients(reference, plain, adapter_for(plain), True)
    model_management.in_training = False
    scale = max(g.abs().max().item() for g in theirs)
    seen["identity of another load"] = reference.identity
    seen["tensors"] = [len(ours), len(theirs), 2 * len(linear_shapes(lent.model.diffusion_model))]
    seen["largest"] = scale
    seen["difference"] = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) / scale
    return seen


if __name__ == "__main__":
    print(json.dumps({f"{kind} {dtype}": compare(kind, dtype) for kind in KINDS for dtype in DTYPES}))
