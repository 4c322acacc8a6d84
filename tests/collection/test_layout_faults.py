"""Files that are broken, foreign or hostile are refused with the file, the key, the reason and the remedy."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from collectionlora.collection.errors import CollectionError, LoraFormatError
from collectionlora.collection.layouts import read_lora, write_lora
from collectionlora.collection.tensors import HEADER_REFUSED, read_header

Q = "transformer_blocks.0.attn.to_q"


def refused(path: Path, shapes=None) -> str:
    """The message with which a file is refused; it names the file."""
    with pytest.raises(LoraFormatError) as caught:
        read_lora(path, shapes)
    assert str(path) in str(caught.value)
    return str(caught.value)


def save(path: Path, keys: dict[str, tuple[int, ...] | torch.Tensor], **metadata: str) -> Path:
    tensors = {key: v if isinstance(v, torch.Tensor) else torch.ones(v) for key, v in keys.items()}
    save_file(tensors, path, metadata=metadata)
    return path


def lora(
    module: str = Q, rank: int = 4, inn: int = 8, out: int = 8, prefix: str = ""
) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{module}.lora_A.weight": (rank, inn), f"{prefix}{module}.lora_B.weight": (out, rank)}


def raw(path: Path, header: object, body: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in refused(tmp_path / "gone.safetensors")
    assert "no such file" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("keep", [0, 5, 8, 40, 0.5, 0.999])
def test_a_truncated_file_is_to_be_fetched_again(keep, tmp_path, make_weights):
    path = tmp_path / "l.safetensors"
    write_lora(make_weights(), path, "comfy")
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    message = refused(path)
    assert "truncated" in message
    assert "fetch it again" in message


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    assert "no weights, expected one of model.safetensors" in refused(tmp_path)
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", lora())
    assert "2 .safetensors files" in refused(tmp_path)


@pytest.mark.parametrize("length", [HEADER_REFUSED + 1, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_without_parsing(length, tmp_path, monkeypatch):
    path = raw(tmp_path / "l.safetensors", b"x" * 100, length=length)
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("parsed"))
    assert f"claims {length} bytes" in refused(path)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe nothing",
        b"[" * 100_000,
        [1, 2],
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 0]}},
        {"a": {"dtype": 5, "shape": [], "data_offsets": [0, 0]}},
        {"__metadata__": {"x": {"y": 1}}},
        {"__metadata__": [1]},
        {f"{Q}\x1b[2J.lora_A.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        {"x" * 5000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        {f"{Q}.lora_A.weight": {"dtype": "F77", "shape": [0], "data_offsets": [0, 0]}},
        {f"{Q}.lora_A.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}},
        {f"{Q}.lora_A.weight": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
    ],
)
def test_a_malformed_header_is_refused(header, tmp_path):
    message = refused(raw(tmp_path / "l.safetensors", header, bytes(16)))
    assert "fetch it again" in message
    assert message.isprintable()


def test_a_pickle_under_another_name_is_refused(tmp_path):
    path = tmp_path / "l.safetensors"
    torch.save({"generator": {}}, path)
    assert "PyTorch pickle, not safetensors" in refused(path)


def test_no_length_of_a_header_is_taken_for_a_pickle(tmp_path):
    entry = {f"{Q}.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    for length in (128, 256 * ord("K") + ord("P"), 0x280):  # its bytes begin as those of a pickle or zip do
        text = json.dumps(entry).encode().ljust(length)
        assert "no LoRA in a known layout" in refused(raw(tmp_path / "l.safetensors", text))


@pytest.mark.parametrize("suffix", ["pt", "bin"])
def test_nothing_in_a_checkpoint_is_executed(suffix, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / f"model.{suffix}"
    for legacy in (False, True):
        torch.save({"generator": {"a": Trap()}}, path, _use_new_zipfile_serialization=not legacy)
        assert "could run code" in refused(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [{}, {"generator": {}}, [1], {"generator": {"x": 1}}, {"generator": 3}])
def test_a_checkpoint_without_a_lora_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    assert "released code's model.pt" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04rubbish", b"\x80\x02]q\x00."])
def test_a_damaged_checkpoint_is_refused(data, tmp_path):
    (tmp_path / "model.pt").write_bytes(data)
    refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"lora_unet_down_blocks_0_attentions_0_to_q.lora_down.weight": (4, 8)}, "Stable Diffusion 1/2/XL"),
        (lora("double_blocks.0.img_attn.qkv", prefix="diffusion_model."), "FLUX"),
        (lora("single_transformer_blocks.0.attn.to_q", prefix="transformer."), "FLUX"),
        (lora("blocks.0.self_attn.q", prefix="diffusion_model."), "Wan"),
        (lora("model.layers.0.self_attn.q_proj", prefix="base_model.model."), "a language model"),
        (lora("layers.0.attention.qkv", prefix="diffusion_model."), "Z-Image"),
        (lora("joint_blocks.0.x_block.attn.qkv"), "Stable Diffusion 3"),
        (lora("whatever.0.linear"), "does not have;"),
        ({"lora_unet_transformer_blocks_0_attn_to_z.lora_down.weight": (4, 8)}, "does not have;"),
    ],
)
@pytest.mark.parametrize("with_shapes", [True, False])
def test_another_architecture_is_named_with_its_first_key(keys, what, with_shapes, tmp_path, shapes):
    message = refused(save(tmp_path / "l.safetensors", keys), shapes if with_shapes else None)
    assert f"'{next(iter(keys))}'" in message
    assert what in message
    base = (
        "Qwen-Image-Edit of width 8 with 3 blocks" if with_shapes else "Qwen-Image-Edit (transformer_blocks.N"
    )
    assert base in message
    assert "use a LoRA trained on it" in message


def test_a_text_encoder_beside_it_does_not_hide_another_architecture(tmp_path):
    keys = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 8),
        "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 8),
    }
    assert "Stable Diffusion 1/2/XL" in refused(save(tmp_path / "l.safetensors", keys))


def test_more_blocks_than_the_base_has_is_another_base(tmp_path, shapes):
    path = save(tmp_path / "l.safetensors", lora("transformer_blocks.59.attn.to_q"))
    assert "transformer_blocks.59.attn.to_q.lora_A.weight" in refused(path, shapes)
    assert read_lora(path).down


@pytest.mark.parametrize(
    ("keys", "wrong", "found", "expected"),
    [
        (lora(inn=3072, out=3072), f"{Q}.lora_A.weight", "(4, 3072)", "(rank, 8)"),
        (lora(out=3072), f"{Q}.lora_B.weight", "(3072, 4)", "(8, 4)"),
        (lora() | {f"{Q}.lora_B.weight": (8, 5)}, f"{Q}.lora_B.weight", "(8, 5)", "(8, 4)"),
        (lora(rank=0), f"{Q}.lora_A.weight", "(0, 8)", "(rank, 8)"),
        (lora() | {f"{Q}.lora_A.weight": (4, 8, 1, 1)}, f"{Q}.lora_A.weight", "(4, 8, 1, 1)", "(rank, 8)"),
        (lora() | {f"{Q}.lora_A.weight": (8,)}, f"{Q}.lora_A.weight", "(8,)", "(rank, 8)"),
    ],
)
def test_wrong_shapes_name_the_first_key_and_both_shapes(keys, wrong, found, expected, tmp_path, shapes):
    later = lora("transformer_blocks.1.attn.to_q", inn=1, out=1)
    message = refused(save(tmp_path / "l.safetensors", keys | later), shapes)
    assert f"'{wrong}' has shape {found}, expected {expected}" in message
    assert "Qwen-Image-Edit of width 8 with 3 blocks" in message


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"lycoris_{Q.replace('.', '_')}.lokr_w1", "LoKr"),
        (f"diffusion_model.{Q}.hada_w1_a", "LoHa"),
        (f"{Q}.dora_scale", "DoRA"),
        (f"base_model.model.{Q}.lora_magnitude_vector.default.weight", "DoRA"),
        (f"{Q}.oft_blocks", "OFT"),
        (f"{Q}.lora_mid.weight", "LoCon"),
        (f"{Q}.diff", "full weight differences"),
        (f"{Q}.diff_b", "full weight differences"),
        (f"{Q}.lora_B.bias", "with biases"),
        (f"base_model.model.{Q}.lora_B.default.bias", "with biases"),
        ("base_model.model.proj_out.modules_to_save.default.weight", "fully trained modules"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text-encoder"),
        ("text_encoder.model.layers.0.q_proj.lora_A.weight", "text-encoder"),
    ],
)
def test_other_adapters_are_told_apart_with_a_remedy(key, what, tmp_path):
    for others in ({}, lora()):
        message = refused(save(tmp_path / "l.safetensors", {key: (4, 4)} | others))
        assert what in message
        assert f"'{key}'" in message
        assert any(word in message for word in ("export it again", "train it"))


@pytest.mark.parametrize("keys", [{}, {f"{Q}.weight": (8, 8)}, {"hello": (1,)}])
def test_a_file_without_a_lora_lists_the_layouts(keys, tmp_path):
    assert "layouts read: diffusers, ComfyUI/ai-toolkit, kohya, PEFT" in refused(
        save(tmp_path / "l.safetensors", keys, note="x")
    )


def test_keys_that_cannot_be_placed_are_refused_not_dropped(tmp_path):
    message = refused(save(tmp_path / "l.safetensors", lora() | {f"{Q}.surprise": (1,)}))
    assert f"'{Q}.surprise'" in message


def test_half_a_pair_is_refused(tmp_path):
    for half in ("lora_A", "lora_B"):
        key = f"{Q}.{half}.weight"
        assert f"'{key}' has no" in refused(save(tmp_path / "l.safetensors", {key: (4, 8)}))


def test_two_adapters_in_a_file_are_refused(tmp_path):
    twice = lora() | lora(prefix="diffusion_model.")
    assert "same module" in refused(save(tmp_path / "l.safetensors", twice))
    named = {f"{m}.lora_{p}.{n}.weight": (4, 4) for m, n in ((Q, "one"), ("img_in", "two")) for p in "AB"}
    assert "several adapters (one, two)" in refused(save(tmp_path / "l.safetensors", named))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", ["A", "B"])
def test_nan_and_infinite_weights_are_refused(part, dtype, value, tmp_path):
    if dtype == torch.float8_e4m3fn and not math.isnan(value):
        value = math.nan  # this dtype has no infinity
    tensors = {key: torch.ones(shape) for key, shape in lora().items()}
    tensors[f"{Q}.lora_{part}.weight"][1, 2] = value
    path = save(tmp_path / "l.safetensors", {key: tensor.to(dtype) for key, tensor in tensors.items()})
    assert f"'{Q}.lora_{part}.weight' holds NaN or infinite values" in refused(path)


def test_whole_number_weights_are_refused(tmp_path):
    keys = {key: torch.ones(shape, dtype=torch.int8) for key, shape in lora().items()}
    assert "expected floating point" in refused(save(tmp_path / "l.safetensors", keys))


def test_a_dtype_that_torch_lacks_is_refused(tmp_path):
    entry = {"dtype": "F6_E2M3", "shape": [8, 8], "data_offsets": [0, 48]}
    keys = {key: {**entry, "data_offsets": [48 * n, 48 * n + 48]} for n, key in enumerate(lora(rank=8))}
    message = refused(raw(tmp_path / "l.safetensors", keys, bytes(96)))
    assert f"'{Q}.lora_A.weight' cannot be read" in message
    assert "save it as bf16" in message


def test_a_checkpoint_is_refused_where_its_reader_is_unsafe(tmp_path, monkeypatch):
    torch.save({key: torch.ones(shape) for key, shape in lora().items()}, tmp_path / "model.pt")
    read_lora(tmp_path / "model.pt")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cu128"))
    assert "update it to 2.10 or newer, or ask for a .safetensors" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("alpha", [torch.tensor(math.nan), torch.ones(2), torch.ones(0)])
def test_a_broken_alpha_is_refused(alpha, tmp_path):
    assert f"'{Q}.alpha'" in refused(save(tmp_path / "l.safetensors", lora() | {f"{Q}.alpha": alpha}))


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "not a map"),
        ({"r": 4}, "lora_alpha is None"),
        ({"r": 4, "lora_alpha": "8"}, "lora_alpha is '8'"),
        ('{"r": 4, "lora_alpha": NaN}', "lora_alpha is nan"),
        ({"lora_alpha": 4}, "r is None"),
        ({"r": -4, "lora_alpha": 4}, "r is -4"),
        ({"r": 8, "lora_alpha": 4}, "says rank 8"),
        ({"r": 4, "lora_alpha": 4, "use_dora": True}, "DoRA"),
        ({"r": 4, "lora_alpha": 4, "peft_type": "LOKR"}, "LOKR"),
        ({"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"r": 4, "lora_alpha": 4, "init_lora_weights": "lora_ga"}, "changes the base"),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": "x"}}, "alpha_pattern is not a map"),
        ({"r": 4, "lora_alpha": 4, "rank_pattern": [1]}, "rank_pattern is not a map"),
        ({"r": 4, "lora_alpha": 4, "rank_pattern": {"(a+)+$": 4}}, "unsafe pattern"),
        ({"r": 4, "lora_alpha": 4, "rank_pattern": {"a?" * 40: 4}}, "unsafe pattern"),
        ({"r": 4, "lora_alpha": 4, "rank_pattern": {"*": 4}}, "unsafe pattern"),
    ],
)
def test_a_broken_configuration_is_refused(config, what, tmp_path):
    save(tmp_path / "adapter_model.safetensors", lora(prefix="base_model.model."))
    (tmp_path / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(LoraFormatError, match=r"adapter_config\.json") as caught:
        read_lora(tmp_path)
    assert what in str(caught.value)


def test_yaml_is_data_not_code(tmp_path):
    pytest.importorskip("yaml")
    save(tmp_path / "model.safetensors", lora())
    (tmp_path / "adapter_config.yaml").write_text(
        f"r: !!python/object/apply:pathlib.Path.touch [{tmp_path}/owned]"
    )
    with pytest.raises(LoraFormatError, match="not valid YAML"):
        read_lora(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_message_does_not_spell_out_what_a_few_lines_of_yaml_stand_for(tmp_path):
    pytest.importorskip("yaml")
    save(tmp_path / "model.safetensors", lora())
    nested = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 1}]\n" for i in range(6))
    for key in ("r", "lora_alpha", "peft_type", "init_lora_weights"):
        rest = {"r": 4, "lora_alpha": [1]} | {key: None}
        lines = "".join(f"{name}: {value}\n" for name, value in rest.items() if value is not None)
        (tmp_path / "adapter_config.yaml").write_text(f"{nested}{lines}{key}: *a5\n")
        with pytest.raises(LoraFormatError) as caught:
            read_lora(tmp_path)
        assert len(str(caught.value)) < 500, key


def test_broken_notes_in_the_header_are_refused(tmp_path):
    for note in ("{", "[]", '{"transformer.r": 4}'):
        assert "lora_adapter_metadata" in refused(
            save(tmp_path / "l.safetensors", lora(), lora_adapter_metadata=note)
        )


def test_errors_are_collection_errors_and_value_errors():
    assert issubclass(LoraFormatError, CollectionError)
    assert issubclass(CollectionError, ValueError)


def test_the_header_tells_shapes_without_the_tensors(tmp_path):
    header = read_header(save(tmp_path / "l.safetensors", lora(), note="x"))
    assert header.tensors[f"{Q}.lora_A.weight"]["shape"] == [4, 8]
    assert header.metadata == {"note": "x"}
