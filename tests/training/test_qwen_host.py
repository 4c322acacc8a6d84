"""The full-size host on a Qwen-Image-Edit folder of tiny random parts, beside diffusers' own pipeline."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from collectionlora import cli
from collectionlora.training.hosts import qwen
from collectionlora.training.hosts.qwen import QwenEditHost
from collectionlora.training.planning.jobs import _text_encoder

SPECIAL = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end")]
SPECIAL += [f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad")]
DEPTH = 16


def byte_letters() -> list[str]:
    """The 256 letters that byte-level tokenizers write bytes with."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(others))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("qwen-image-edit")
    vocabulary = {word: i for i, word in enumerate([*byte_letters(), *SPECIAL])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    tokenizer.save_pretrained(root / "tokenizer")
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112).save_pretrained(root / "processor")
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(vocabulary) + 8,
        "hidden_size": DEPTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": DEPTH,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        **{key: text[key] for key in ("hidden_size", "vocab_size")},
    )
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(root / "text_encoder")
        AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(
            root / "vae"
        )
        QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=DEPTH,
            axes_dims_rope=(4, 6, 6),
        ).save_pretrained(root / "transformer")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageEditPlusPipeline"}))
    return root


@pytest.fixture(scope="module")
def host(folder: Path) -> QwenEditHost:
    return QwenEditHost(folder, dtype=torch.float32)


@pytest.fixture
def picture() -> torch.Tensor:
    values = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(1))
    return values / 255


def to_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).movedim(0, -1).numpy())


def test_prompts_depend_on_the_picture_and_have_their_own_length(host, picture):
    short, long = host.encode_text(["blue", "a much longer instruction"], picture)
    assert short.shape[1] == long.shape[1] == DEPTH
    assert len(long) - len(short) == len("a much longer instruction") - len("blue")
    other = host.encode_text(["blue"], 1 - picture)[0]
    assert other.shape == short.shape
    assert not torch.allclose(other, short)
    alone = host.encode_text(["blue"], None)[0]
    assert len(alone) < len(short)


def test_a_picture_has_rows_and_columns_and_words_follow_it(host, picture):
    """As in ComfyUI and in what the encoder was trained with: words have the place after the largest side."""
    seen: list[torch.Tensor] = []
    rotary = host._pipeline.text_encoder.model.language_model.rotary_emb
    hook = rotary.register_forward_pre_hook(
        lambda _, given, named: seen.append([*given, *named.values()][1]), with_kwargs=True
    )
    host.encode_text(["blue"], picture)
    host.encode_text(["blue"], None)
    hook.remove()
    with_picture, alone = (places[-3:, 0] for places in seen)
    time, rows, columns = with_picture
    inside = (rows != columns).nonzero()
    first, last = int(inside.min()), int(inside.max())
    assert len(time[first : last + 1].unique()) == 1
    sides = [int(axis[first : last + 1].max() - time[first] + 1) for axis in (rows, columns)]
    assert sides[1] > sides[0] > 1  # of a picture that is wider than high
    assert torch.equal(with_picture[:, -1], torch.full((3,), int(with_picture.max())))
    assert int(with_picture.max()) < len(time) - 1
    assert torch.equal(alone, torch.arange(alone.shape[1]).expand(3, -1))


def test_an_image_survives_the_change_to_latents_as_in_the_pipeline(host, picture):
    latents = host.encode_image(picture[None])
    assert latents.shape == (1, 16, 8, 12)
    pipeline = host._pipeline
    frames = (picture * 2 - 1)[None, :, None]
    expected = pipeline._encode_vae_image(frames, torch.Generator())[:, :, 0]
    torch.testing.assert_close(latents, expected)
    assert host.decode(latents).shape == (1, 3, 64, 96)


def test_eulers_steps_equal_the_pipelines(host, picture, monkeypatch):
    """The same sigmas, noise, words and source give the pipeline's own latents."""
    pipeline: QwenImageEditPlusPipeline = host._pipeline
    pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    width, height = 96, 64
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", width * height)
    noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(2))
    source = host.encode_image(picture[None])
    text = host.encode_text(["blue"], picture)[0][None]
    sigmas = [1.0, 0.6, 0.2]
    packed = pipeline._pack_latents(noise, 1, 16, 8, 12)
    expected = pipeline(
        image=to_pillow(picture),
        prompt_embeds=text,
        prompt_embeds_mask=torch.ones(text.shape[:2], dtype=torch.long),
        latents=packed,
        sigmas=sigmas,
        height=height,
        width=width,
        true_cfg_scale=1.0,
        output_type="latent",
    ).images
    x = noise
    for now, then in zip(sigmas, [*sigmas[1:], 0.0]):
        x = x + (then - now) * host.velocity(x, torch.full((1,), now), text, source)
    torch.testing.assert_close(pipeline._pack_latents(x, 1, 16, 8, 12), expected, rtol=1e-4, atol=1e-4)


def test_pictures_are_read_at_the_size_the_method_trains_with(host, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((300, 500, 3), np.uint8)).save(path)
    image = host.read_image(path)
    assert image.shape == (3, 608, 1024)  # 614 rows, cropped to a multiple of 32
    (tmp_path / "not.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"not\.png is not a readable picture"):
        host.read_image(tmp_path / "not.png")


@pytest.mark.parametrize(
    ("size", "tokens"),  # rows and columns, as ComfyUI's encoder counts them
    [((768, 1024), (12, 16)), ((704, 1024), (11, 17)), ((1024, 1024), (14, 14)), ((1024, 640), (17, 11))],
)
def test_the_encoder_sees_a_picture_of_comfyuis_size(size, tokens):
    copy = qwen._small_copy(torch.rand(3, *size, generator=torch.Generator().manual_seed(4)))
    assert (round(copy.height / 28), round(copy.width / 28)) == tokens
    assert abs(copy.width * copy.height - qwen.SEEN_AREA) < copy.width


def test_another_edition_is_refused(folder, tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "QwenImageEditPipeline"}))
    with pytest.raises(ValueError, match=r"made for QwenImageEditPipeline, not .* use the folder of .*2509"):
        QwenEditHost(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"its model_index\.json cannot be read; fetch it again"):
        QwenEditHost(tmp_path)


def test_2511_is_shown_its_source_at_time_0(folder, host, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "zero_cond_t": True}))
    assert (host.reference_method, QwenEditHost(tmp_path).reference_method) == ("", "index_timestep_zero")


def test_a_missing_part_is_named(folder, tmp_path):
    shutil.copy(folder / "model_index.json", tmp_path)
    with pytest.raises(ValueError, match=r"transformer: no such folder"):
        QwenEditHost(tmp_path)
    for part in ("transformer", "vae"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(ValueError, match=r"text_encoder: cannot be loaded"):
        QwenEditHost(tmp_path)


def test_the_identity_follows_the_weights(folder, host, tmp_path):
    for part in qwen.PARTS:
        (tmp_path / part).mkdir()
        for file in (folder / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    assert qwen._identity(tmp_path) == host.identity
    [weights] = (tmp_path / "vae").glob("*.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-3] ^= 1
    weights.write_bytes(changed)
    assert qwen._identity(tmp_path) != host.identity


@pytest.mark.parametrize("offload", [True, 1])
def test_an_offloaded_base_computes_the_same(folder, host, picture, offload):
    away = QwenEditHost(folder, dtype=torch.float32, offload=offload)
    assert away.transformer.transformer_blocks[0].attn.to_q.weight.numel() == 0
    assert away.identity == host.identity
    found = []
    for one in (host, away):
        text = one.encode_text(["blue"], picture)[0][None]
        source = one.encode_image(picture[None])
        found.append(one.velocity(source.flip(1), torch.full((1,), 0.5), text, source))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_a_text_encoder_that_does_not_fit_waits_in_host_memory(folder, host, picture, monkeypatch):
    tight = QwenEditHost(folder, dtype=torch.float32)
    monkeypatch.setattr(tight, "_has_room", lambda part: False)
    words = tight._pipeline.text_encoder
    projection = words.model.language_model.layers[1].self_attn.q_proj
    for _ in range(2):  # turns
        text = tight.encode_text(["blue"], picture)[0]
        torch.testing.assert_close(text, host.encode_text(["blue"], picture)[0], rtol=1e-6, atol=1e-6)
        assert projection.weight.numel() == 0
        source = tight.encode_image(picture[None])
        tight.velocity(source, torch.ones(1), text[None], source)
        assert projection.weight.numel() == DEPTH**2
        assert tight._layers.present == ()


def test_a_plan_knows_how_much_of_the_text_encoder_must_be_there(folder, host):
    held = sum(p.numel() * p.element_size() for p in host._pipeline.text_encoder.parameters())
    assert _text_encoder(folder / "text_encoder") == held  # it has two layers


def test_a_packed_base_is_another_base_and_close(folder, host, picture):
    packed = QwenEditHost(folder, dtype=torch.float32, base_dtype="fp8")
    assert packed.transformer.transformer_blocks[1].img_mlp.net[2].weight.dtype == torch.float8_e4m3fn
    assert packed.identity != host.identity
    text = host.encode_text(["blue"], picture)[0][None]
    source = host.encode_image(picture[None])
    given = source.flip(1), torch.full((1,), 0.5), text, source
    truth = host.velocity(*given)
    error = (packed.velocity(*given) - truth).norm() / truth.norm()
    assert 0 < error < 0.1


def test_more_blocks_to_offload_than_there_are_are_refused(folder):
    with pytest.raises(ValueError, match="offload = 3: the model has 2 blocks"):
        QwenEditHost(folder, offload=3)


@pytest.mark.parametrize("kept", ["", 'base_dtype = "fp8"\noffload = true\ncheckpointing = "selective"\n'])
def test_the_command_line_distils_on_it(folder, tmp_path, monkeypatch, capsys, kept):
    """Lists, two pictures and a teacher in; a collection out that the same base loads."""
    hosts, policies = [], []
    keep, fuse = qwen.keep_small, qwen.fuse
    monkeypatch.setattr(qwen, "fuse", lambda net, how, *more: policies.append(how) or fuse(net, how, *more))
    monkeypatch.setattr(qwen, "keep_small", lambda *given: hosts.append(given[2:]) or keep(*given))
    from safetensors.torch import save_file

    from collectionlora.training.lora import target_shapes

    shapes = target_shapes(QwenImageTransformer2DModel.from_pretrained(folder / "transformer"))
    draw = torch.Generator().manual_seed(3)
    tensors = {}
    for path, (out, into) in shapes.items():
        tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(2, into, generator=draw)
        tensors[f"transformer.{path}.lora_B.weight"] = 0.1 * torch.randn(out, 2, generator=draw)
    save_file(tensors, tmp_path / "neon.safetensors")
    sources = [f"{i}.png" for i in range(8)]
    for i, name in enumerate(sources):
        Image.fromarray(np.full((64, 64, 3), 30 * i, np.uint8)).save(tmp_path / name)
    lines = {
        "effects": [{"lora_name": "neon", "lora_path": "neon.safetensors", "prompt": "neon"}],
        "data": [{"source_image": n, "instruction": "neon", "lora_name": "neon"} for n in sources],
        "general": [{"source_image": sources[0], "instruction": "make it blue"}],
    }
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "run.toml").write_text(
        f'output = "out"\nbase = {json.dumps(str(folder))}\neffects = "effects.jsonl"\n'
        'data = "data.jsonl"\ngeneral = "general.jsonl"\ncandidates = 4\nlong_side = 64\n'
        f"{kept}"
        "[targets]\nsteps = 2\n[distill]\ncycles = 2\nrank = 2\nalpha = 2.0\nbatch = 2\n"
    )
    (tmp_path / "data.jsonl").write_text(json.dumps(lines["data"][0]))
    assert cli.main(["distill", str(tmp_path / "run.toml")]) == 2
    assert "the data list names 1 different sources" in capsys.readouterr().err
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in lines["data"]))
    assert cli.main(["distill", str(tmp_path / "run.toml")]) == 0
    assert hosts[-1] == (("fp8", True) if kept else ("bf16", False))
    assert policies[-1] == ("selective" if kept else "full")
    collection = tmp_path / "out" / "collection.safetensors"
    arguments = ["sample", str(collection), "--base", str(folder), "--image", str(tmp_path / "1.png")]
    arguments += ["--size", "64"]
    assert cli.main([*arguments, "--effect", "neon", "--out", str(tmp_path / "made.png")]) == 0
    with Image.open(tmp_path / "made.png") as made:
        assert made.size == (64, 64)
    assert cli.main(["evaluate", "--base", str(folder)]) == 2
    assert "pocket" in capsys.readouterr().err


def test_decoding_is_the_pipelines(host):
    pipeline, latents = host._pipeline, torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    config = pipeline.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    made = pipeline.vae.decode(latents[:, :, None] * std + mean, return_dict=False)[0][:, :, 0].detach()
    torch.testing.assert_close(
        host.decode(latents), pipeline.image_processor.postprocess(made, output_type="pt")
    )


def test_the_middle_of_a_picture_is_read(host, tmp_path):
    values = np.zeros((614, 1024, 3), np.uint8)
    values[:3] = values[-3:] = 255
    Image.fromarray(values).save(tmp_path / "bars.png")
    assert host.read_image(tmp_path / "bars.png").max() == 0
