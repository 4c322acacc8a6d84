"""Pieces of the training scripts that must hold whatever the weights are."""

import numpy as np
import torch

from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.pocket.autoencoder import CHANNELS, Autoencoder
from collectionlora.pocket.train import base, few_step, text
from collectionlora.training.hosts.diffusers import EditVelocity, pocket_transformer
from collectionlora.training.hosts.plain_attention import PlainAttention, rotated
from collectionlora.training.hosts.pocket import PocketHost


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_plain_attention_equals_diffusers_own():
    model = pocket_transformer()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=random(parameter.numel()))
    velocity = EditVelocity(model)
    x, source = torch.randn(2, 2, 16, 4, 6, generator=random(0))
    given = (x, torch.tensor([0.3, 0.8]), torch.randn(2, 7, 64, generator=random(1)), source)
    with torch.no_grad():
        expected = velocity(*given)
        model.set_attn_processor(PlainAttention())
        torch.testing.assert_close(velocity(*given), expected, rtol=1e-4, atol=1e-4)


def test_the_pocket_in_bfloat16_predicts_what_it_does_in_float32():
    x, source = torch.randn(2, 3, 16, 16, 16, generator=random(0))
    sigma = torch.tensor([0.1, 0.5, 0.9545])
    made = []
    for bfloat16 in (False, True):
        host = PocketHost(bfloat16=bfloat16)
        text = torch.stack(host.encode_text(["invert the colours", "blur it", ""]))
        with torch.no_grad():
            made.append(host.velocity(x, sigma, text, source))
    exact, rounded = made
    assert rounded.dtype == torch.float32
    error = (rounded - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert (error > 0).all()
    assert (error < 0.03).all()


def test_latents_vary_as_they_matter_in_the_picture():
    model = Autoencoder().eval()
    images = torch.rand(80, 3, 32, 32, generator=random(2))
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)  # neighbours resemble each other, as in pictures
    model.start_from_pca(images)
    model.calibrate(images)
    with torch.no_grad():
        latents = model.encode(images)
        torch.testing.assert_close(
            model.decode(latents), (model.decoder(model.encoder(images * 2 - 1)) + 1) / 2
        )
    deviations = latents.std((0, 2, 3))
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert 0.3 < float(latents.square().mean()) < 3
    # principal components come with rising variance: so does their worth
    assert deviations[CHANNELS - 1] > 1.5 * deviations[0]
    assert torch.equal(deviations.argsort()[-3:], torch.arange(CHANNELS)[-3:])


def test_the_base_starts_with_heads_that_look_the_source_up_and_one_that_reads():
    model = pocket_transformer()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=random(parameter.numel()))
    base.give_a_start(model)
    seen = []

    class Watched(PlainAttention):
        def __call__(self, attn, hidden_states, encoder_hidden_states, *rest, image_rotary_emb, **others):
            def heads(linear, norm, tokens, angles):
                x = norm(linear(tokens).unflatten(-1, (attn.heads, -1)))
                return rotated(x, angles.real[:, None], angles.imag[:, None])

            image, words = image_rotary_emb
            q = heads(attn.to_q, attn.norm_q, hidden_states, image)
            k = torch.cat(
                [
                    heads(attn.add_k_proj, attn.norm_added_k, encoder_hidden_states, words),
                    heads(attn.to_k, attn.norm_k, hidden_states, image),
                ],
                1,
            )
            scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
            seen.append(scores.softmax(-1)[0])
            given = (attn, hidden_states, encoder_hidden_states, *rest)
            return super().__call__(*given, image_rotary_emb=image_rotary_emb, **others)

    model.set_attn_processor(Watched())
    x, source = torch.randn(2, 1, 16, 16, 16, generator=random(3))
    prompt = torch.randn(1, 32, 64, generator=random(4))
    with torch.no_grad():
        EditVelocity(model)(x, torch.tensor([0.5]), prompt, source)
    assert len(seen) == 5
    own = torch.arange(64)
    for attention in seen:
        for head in range(base.LOOKING):
            assert attention[head, own, 32 + 64 + own].mean() > 0.5
        assert attention[base.LOOKING, own, :32].sum(-1).min() > 0.9


def test_the_words_of_an_instruction_are_what_the_text_encoder_is_asked_for():
    instructions, families, words, count = text.lessons(np.random.default_rng(0), 300)
    assert len(instructions) == len(families) == len(words) == 300
    assert int(families.max()) < count
    for instruction, held in zip(instructions, words):
        assert int(held.sum()) == len(set(instruction.replace(",", "").split()))


def test_the_strongest_directions_of_a_lora_are_its_nearest_of_that_rank():
    down, up = torch.randn(4, 6, generator=random(0)), torch.randn(5, 4, generator=random(1))
    lora = LoraWeights({"a": down}, {"a": up}, {"a": 2.0})
    left, values, right = torch.linalg.svd(0.5 * up @ down)
    for rank in (2, 4, 9):
        kept = few_step.strongest(lora, rank)
        assert kept.rank("a") == min(rank, 5)
        some = min(rank, 4)
        expected = left[:, :some] * values[:some] @ right[:some]
        torch.testing.assert_close(kept.scale("a") * kept.up["a"] @ kept.down["a"], expected)
