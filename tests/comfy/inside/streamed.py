"""Runs in ComfyUI's Python: a model of which a part waits in host memory is lent for training.

usage: streamed.py   (prints one line of JSON: what was seen)

There is one device here, but core takes such weights another way all the same: cast anew at each use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import torch  # noqa: E402
from comfy import model_management, ops  # noqa: E402
from comfy.weight_adapter import LoRAAdapter  # noqa: E402

from collectionlora.collection.jsonl import EffectEntry, EffectSample, GeneralSample  # noqa: E402
from collectionlora.nodes.planning import MARGIN, _on_this_model, room_for  # noqa: E402
from collectionlora.pocket import WEIGHTS  # noqa: E402
from collectionlora.training.config import distillation  # noqa: E402
from collectionlora.training.hosts import comfy as hosts_comfy  # noqa: E402
from collectionlora.training.hosts.borrowed import borrowed  # noqa: E402
from collectionlora.training.hosts.comfy import ComfyHost, UnsupportedModelError, not_dynamic  # noqa: E402
from collectionlora.training.hosts.comfy_pocket import pocket_clip, pocket_model, pocket_vae  # noqa: E402
from collectionlora.training.hosts.streamed import gradient_error  # noqa: E402
from collectionlora.training.lora import linear_shape  # noqa: E402
from collectionlora.training.planning.architecture import Architecture  # noqa: E402
from collectionlora.training.planning.cards import RESERVE  # noqa: E402
from collectionlora.training.planning.footprint import base_bytes  # noqa: E402
from collectionlora.training.planning.plan import Plan  # noqa: E402
from collectionlora.training.run_config import Lists, Run  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from lending import adapter_for, gradients  # noqa: E402
from models import DTYPES, KINDS, random_model  # noqa: E402

CPU = torch.device("cpu")


def linears(model: Any) -> list[torch.nn.Module]:
    """All of a model's."""
    return [one for one in model.diffusion_model.modules() if linear_shape(one) is not None]


def half(kind: str, dtype: str) -> dict[str, Any]:
    """Gradients with half of the model unloaded, and as it was."""
    with torch.inference_mode():
        patcher, clip, vae = random_model(kind, dtype), pocket_clip(), pocket_vae()
        host = ComfyHost(patcher, clip, vae)
    with host.lend():
        whole = gradients(host, patcher, adapter_for(patcher), True)
        with torch.inference_mode():
            patcher.partially_unload(patcher.offload_device, host.size // 2)
        waiting = [one for one in linears(patcher.model) if one.comfy_cast_weights]
        found = gradients(host, patcher, adapter_for(patcher), True)
        error = gradient_error(waiting, CPU, patcher.model.get_dtype_inference())
    scale = max(g.abs().max().item() for g in whole)
    return {
        "waiting": len(waiting),
        "loaded": host.loaded / host.size,
        "difference": max((a - b).abs().max().item() for a, b in zip(found, whole, strict=True)) / scale,
        "error": error,
    }


@contextmanager
def overwritten() -> Iterator[None]:
    """Core's buffers hold something else by the time that a weight is used."""
    cast = ops.cast_bias_weight

    def late(module: Any, *args: Any, offloadable: bool = False, **kwargs: Any) -> Any:
        found = cast(module, *args, offloadable=offloadable, **kwargs)
        return (found[0].roll(1, 0), *found[1:]) if offloadable else found

    with patch.object(ops, "cast_bias_weight", late):
        yield


def lent(case: str) -> str:
    """What is said of a model that does not fit."""
    with torch.inference_mode():
        patcher, clip, vae = random_model("qwen"), pocket_clip(), pocket_vae()
        host = ComfyHost(patcher, clip, vae)
    if case == "with a LoRA":
        path = "transformer_blocks.0.attn.to_q"
        out, into = patcher.model.diffusion_model.get_submodule(path).weight.shape
        lora = LoRAAdapter(set(), (torch.ones(out, 2), torch.ones(2, into), 2.0, None, None, None))
        patcher.add_patches({f"diffusion_model.{path}.weight": lora})
    asked: list[dict[str, Any]] = []
    load = model_management.load_models_gpu

    def partly(models: Any, **kwargs: Any) -> None:
        asked.append(kwargs)
        load(models, **kwargs)
        patcher.partially_unload(patcher.offload_device, host.size // 2)

    with ExitStack() as stack:
        stack.enter_context(patch.object(model_management, "load_models_gpu", partly))
        stack.enter_context(patch.object(hosts_comfy, "streamed_linears", lambda *_: linears(patcher.model)))
        if case == "overwritten":
            stack.enter_context(overwritten())
        try:
            with host.lend(None if case == "as a whole" else 123):
                host._load()
                return f"lent, asked {asked}"
        except UnsupportedModelError as error:
            return str(error)


def dynamic() -> dict[str, Any]:
    """Of a model in dynamic VRAM: training has a model of its own."""
    with torch.inference_mode():
        patcher, clip, vae = pocket_model(), pocket_clip(), pocket_vae()
        patcher.is_dynamic = lambda: True
        model_management.load_models_gpu([patcher])
        host = ComfyHost(patcher, clip, vae)
        plain = ComfyHost(pocket_model(), clip, vae)
    own, loaded = host._patcher, model_management.current_loaded_models
    twice = any(one.model is patcher for one in loaded)
    with host.lend():
        found, identity = gradients(host, own, adapter_for(own), True), host.identity
        while_lent = [one.model is own for one in loaded]
    after = any(one.model is own for one in loaded)
    gone = {parameter.device.type for parameter in own.model.parameters()}
    with plain.lend():
        expected = gradients(plain, plain._patcher, adapter_for(plain._patcher), True)
    return {
        "twice": twice,
        "its own": own is not patcher and own.model is not patcher.model,
        "name": host.name,
        "identity": identity == plain.identity,
        "difference": max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)),
        "while lent": while_lent,
        "after": after,
        "weights": sorted(gone),
    }


def as_asked() -> list[str]:
    """The dtypes of a model in dynamic VRAM whose loader was asked for 8 bits, in the run's own."""
    with torch.inference_mode():
        patcher, another = random_model("qwen", "bfloat16"), random_model("qwen", "bfloat16")
    for one in linears(another.model):
        one.weight_comfy_model_dtype = torch.float8_e4m3fn
    patcher.is_dynamic = lambda: True
    patcher.cached_patcher_init = (lambda disable_dynamic: another, ())
    own = not_dynamic(patcher)
    found = {one.weight.dtype for one in linears(own.model)}
    halved = own.model_size() < 0.6 * patcher.model_size()
    return [*map(str, found), "halved" if halved else "as large"]


def out_of_files() -> dict[str, Any]:
    """Of quantised weights: whether they are copies now, and the same."""
    with torch.inference_mode():
        module = random_model("qwen", "fp8 scaled").model.diffusion_model
        before = {name: one._qdata for name, one in quantised(module).items()}
        hosts_comfy._out_of_files(module)
    after = {name: one._qdata for name, one in quantised(module).items()}
    return {
        "weights": len(before),
        "copied": all(before[name].data_ptr() != after[name].data_ptr() for name in before),
        "equal": all(torch.equal(before[name].float(), after[name].float()) for name in before),
    }


def quantised(module: torch.nn.Module) -> dict[str, Any]:
    return {n: p for n, p in module.named_parameters() if isinstance(p, ops.QuantizedTensor)}


def norms() -> dict[str, Any]:
    """Where the weight of a norm is while its forward runs, if the model computes elsewhere."""
    seen: list[torch.Tensor] = []

    class Norm(torch.nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.weight)
            return x

    with torch.inference_mode():
        norm = Norm(4)
    module = torch.nn.Sequential(norm)
    with borrowed(module, torch.device("meta")):
        module(torch.zeros(1, 4)), module(torch.zeros(1, 4))
    return {
        "device": seen[0].device.type,
        "inference": seen[0].is_inference(),
        "copies": len({id(one) for one in seen}),
        "afterwards": norm.weight.device.type,
    }


def room() -> dict[str, Any]:
    """What is planned for a model on a card, whole and with a half of it there."""
    picture = next((WEIGHTS.parent / "pictures" / "test").glob("*.webp"))
    teacher = WEIGHTS / "teachers" / "sketch.safetensors"
    lists = Lists(
        {"sketch": EffectEntry("sketch", teacher, "sketch it", "", "", "")},
        [EffectSample(picture, "", "sketch", None)],
        [GeneralSample(picture, "blur it")],
    )
    run = Run(Path("out"), lists, distill=distillation({"rank": 4, "alpha": 4.0}))
    with torch.inference_mode():
        host = ComfyHost(pocket_model(), pocket_clip(), pocket_vae(), 128, 16, True)
    on_cpu = room_for(run, host, {})
    host.device = SimpleNamespace(type="cuda")  # nothing is computed
    free = room_for(run, host, {})
    missing = replace(lists, effects={"sketch": replace(lists.effects["sketch"], lora_path=Path("none"))})
    without = room_for(replace(run, lists=missing), host, {})
    architecture = Architecture.found_in(host.transformer)
    assert architecture is not None
    seen: dict[str, Any] = {}
    for name, there in (("whole", host.size), ("half", host.size // 2)):
        with patch.object(ComfyHost, "loaded", there):
            job, setting = _on_this_model(run, host, architecture, {}, host.loaded)
        plan = Plan(job, setting, 0)
        base = base_bytes(architecture, setting.storage)
        seen[name] = {"base": base, "beside": plan.bytes - base, "name": setting.storage.name}
    return {
        "on a CPU": on_cpu,
        "free": free,
        "without a teacher": without,
        "margin": MARGIN,
        "reserve": RESERVE,
        "size": host.size,
        **seen,
    }


if __name__ == "__main__":
    result: dict[str, Any] = {f"{kind} {dtype}": half(kind, dtype) for kind in KINDS for dtype in DTYPES}
    cases = ("as a whole", "with room", "with a LoRA", "overwritten")
    result |= {case: lent(case) for case in cases}
    result |= {"dynamic": dynamic(), "as asked": as_asked(), "out of files": out_of_files()}
    print(json.dumps(result | {"norms": norms(), "room": room()}))
