"""AOP: tags are chosen, not merely drawn; captions come from where they are said to come from."""

import base64
import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from collectionlora.collection.catalogue import Effect
from collectionlora.training import prompting
from collectionlora.training.captions import (
    CaptionError,
    VlmEndpoint,
    caption_template,
    caption_vlm,
    data_url,
)

NAMES = ["frost", "frost thick", "glass", "stickers", "confetti", "mirror", "sketch", "halftone"]
CAPTIONS = {name: f"cover the subject with {name.split()[0]}" for name in NAMES}


def hashed_embed(prompts):
    """A stand-in encoder: a large common direction, one direction a word."""
    rows = []
    for prompt in prompts:
        row = torch.full((24,), 10.0)
        for word in prompt.split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            row = row + torch.randn(24, generator=torch.Generator().manual_seed(seed))
        rows.append(row)
    return torch.stack(rows)


def prompts_of(report):
    return {name: prompting.student_prompt(report.tags[name], report.captions[name]) for name in report.names}


def worst(matrix):
    return prompting.largest_pair(matrix)[2]


def test_chosen_tags_are_further_apart_than_random_tags_and_captions_alone():
    report = prompting.choose_tags(hashed_embed, CAPTIONS, candidates=32, seed=1)
    assert worst(report.without) == pytest.approx(1)  # the two frosts have the same caption
    assert worst(report.chosen) < worst(report.random) - 0.15 < worst(report.without)
    summary = report.to_json()
    assert summary["chosen_tags"]["max"] < summary["random_tags"]["max"] < summary["no_tags"]["max"]
    assert sorted(summary["no_tags"]["max_pair"]) == ["frost", "frost thick"]
    assert json.loads(json.dumps(summary)) == summary


def test_reported_matrix_is_the_one_of_the_chosen_prompts():
    report = prompting.choose_tags(hashed_embed, CAPTIONS, candidates=8, seed=1)
    prompts = prompts_of(report)
    again = prompting.similarity(hashed_embed([prompts[name] for name in report.names]))
    torch.testing.assert_close(report.chosen, again, atol=1e-6, rtol=0)


def test_choice_does_not_depend_on_order_and_repeats():
    turned = dict(reversed(CAPTIONS.items()))
    first = prompting.choose_tags(hashed_embed, CAPTIONS, candidates=8, seed=3)
    assert prompting.choose_tags(hashed_embed, turned, candidates=8, seed=3, batch=5).tags == first.tags
    assert prompting.choose_tags(hashed_embed, CAPTIONS, candidates=8, seed=4).tags != first.tags


def test_no_single_swap_improves_the_choice():
    report = prompting.choose_tags(hashed_embed, CAPTIONS, candidates=6, seed=2, restarts=1)
    for name in NAMES:
        for tag in prompting.candidate_tags(name, 6, 2):
            prompts = {**prompts_of(report), name: prompting.student_prompt(tag, CAPTIONS[name])}
            swapped = prompting.similarity(hashed_embed([prompts[each] for each in report.names]))
            assert worst(swapped) >= worst(report.chosen) - 1e-6


def test_adding_an_effect_keeps_the_candidates_of_the_others():
    assert prompting.candidate_tags("frost", 5, 0) == prompting.candidate_tags("frost", 9, 0)[:5]
    assert not set(prompting.candidate_tags("frost", 5, 0)) & set(prompting.candidate_tags("frost", 5, 1))


def test_tags_are_short_unique_and_marked():
    tags = prompting.candidate_tags("oil paint!", 200, 0)
    assert len(set(tags)) == 200
    assert all(tag.startswith("<oil_paint_") and tag.endswith(">") and len(tag) == 20 for tag in tags)


@pytest.mark.parametrize("length", [1, 53, 54, 58, 300])
def test_a_long_name_is_cut_so_that_a_catalogue_holds_its_tags(length):
    name = "camera_angle_" * 30
    for tag in prompting.candidate_tags(name[:length], 20, 0):
        assert Effect("camera", "Camera", tag, f"{tag} turn it").tag == tag
        assert tag[1:].startswith(name[: min(length, 50)])


def test_fixed_tags_stay_and_the_others_are_chosen_around_them():
    asked = []

    def embed(prompts):
        asked.extend(prompts)
        return hashed_embed(prompts)

    fixed = {"frost": "<ice>", "mirror": ""}
    told = []
    report = prompting.choose_tags(
        embed, CAPTIONS, 8, 1, batch=10, fixed=fixed, progress=lambda *one: told.append(one)
    )
    assert len(asked) == 2 + 6 * 8 + 8
    assert told == [(done, 58) for done in (10, 20, 30, 40, 50, 58)]
    assert report.tags["frost"] == report.random_tags["frost"] == "<ice>"
    assert prompts_of(report)["mirror"] == CAPTIONS["mirror"]
    again = prompting.similarity(hashed_embed([*prompts_of(report).values()]))
    torch.testing.assert_close(report.chosen, again, atol=1e-6, rtol=0)
    assert worst(report.chosen) < worst(report.random)


def test_the_choice_between_free_effects_is_the_one_of_earlier_versions():
    tags = prompting.choose_tags(hashed_embed, CAPTIONS, candidates=8, seed=3).tags
    picks = [prompting.candidate_tags(name, 8, 3).index(tags[name]) for name in sorted(NAMES)]
    assert picks == [0, 5, 3, 0, 4, 1, 0, 0]


def test_one_effect_needs_no_search_and_none_is_an_error():
    report = prompting.choose_tags(hashed_embed, {"frost": "freeze it"}, candidates=4)
    assert report.tags["frost"] in prompting.candidate_tags("frost", 4, 0)
    assert report.to_json()["chosen_tags"]["max"] == 0
    with pytest.raises(ValueError, match="no effects"):
        prompting.choose_tags(hashed_embed, {})


def test_similarity_ignores_the_common_direction_and_matches_the_definition():
    embeddings = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    shifted = prompting.similarity(embeddings + 100)
    centred = embeddings - embeddings.mean(0)
    expected = torch.nn.functional.cosine_similarity(centred[:, None], centred[None], dim=-1)
    torch.testing.assert_close(shifted.float(), expected, atol=1e-4, rtol=0)
    assert prompting.similarity(torch.ones(3, 4)).tolist() == [[1.0] * 3] * 3


def test_broken_encoders_are_named():
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\)"):
        prompting.choose_tags(lambda prompts: torch.zeros(1, 2, 3), CAPTIONS)
    with pytest.raises(ValueError, match="NaN or Inf"):
        prompting.choose_tags(lambda prompts: torch.full((len(prompts), 3), torch.nan), CAPTIONS)


def test_embeddings_are_averaged_over_at_least_eight_images():
    images = [torch.full((1,), float(value)) for value in range(8)]
    embed = prompting.embed_over_images(lambda prompts, image: torch.ones(len(prompts), 3) * image, images)
    assert embed(["a", "b"]).tolist() == [[3.5] * 3] * 2
    with pytest.raises(ValueError, match="at least 8"):
        prompting.embed_over_images(lambda prompts, image: image, images[:7])


def test_composition_names_both_in_order():
    text = prompting.compose("<a_1> frost.", "<b_2> gild")
    assert text == "First turn the input into '<a_1> frost', then do '<b_2> gild'."
    assert prompting.compose("A", "B", prompting.SHORT_COMPOSITION) == "A, then B"
    assert (
        prompting.compose("{second}", "B", "{first} {bright} then {second} {") == "{second} {bright} then B {"
    )
    assert prompting.student_prompt("", "frost") == "frost"


def test_template_keeps_the_words_of_the_teacher():
    assert caption_template("  <sks>  Cover it\nwith frost. ") == "Cover it with frost"
    with pytest.raises(ValueError, match="says nothing"):
        caption_template("<sks> .")


# --- captions from an endpoint ---


def chat(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class Endpoint:
    """A local chat-completions server with scripted (status, body) answers; the last one repeats."""

    def __init__(self, answers):
        self.answers, self.requests = list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), body))
                status, text = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def vlm(self, **options):
        return VlmEndpoint(self.url, "some-vlm", "secret-key", **{"pause": 0.001, "timeout": 10, **options})


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def pairs():
    draw = torch.Generator().manual_seed(0)
    return [(torch.rand(3, 20, 24, generator=draw), torch.rand(3, 20, 24, generator=draw)) for _ in range(5)]


def test_caption_shows_two_pairs_and_the_prompt(pairs):
    with Endpoint([chat('<think>hm</think>\n"Cover the subject  with frost."')]) as server:
        caption = caption_vlm(server.vlm(), pairs[:2], "frost it")
    assert caption == "Cover the subject with frost"
    [(path, key, body)] = server.requests
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret-key", "some-vlm")
    content = body["messages"][0]["content"]
    assert "'frost it'" in content[0]["text"]
    pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert len(set(pictures)) == 4
    assert set(pictures) <= {data_url(image) for pair in pairs for image in pair}


def test_pictures_survive_the_way_and_large_ones_are_reduced():
    image = torch.rand(3, 600, 1200, generator=torch.Generator().manual_seed(0))
    header, payload = data_url(image).split(",")
    assert header == "data:image/png;base64"
    small = Image.open(io.BytesIO(base64.b64decode(payload)))
    assert small.size == (543, 272)
    flat = Image.open(io.BytesIO(base64.b64decode(data_url(torch.full((3, 8, 6), 0.2)).split(",")[1])))
    assert flat.size == (6, 8)
    assert flat.getpixel((2, 3)) == (51, 51, 51)


def test_transient_failures_are_tried_again(pairs):
    with Endpoint([(503, "busy"), (429, "slow down"), chat("Freeze the subject")]) as server:
        assert caption_vlm(server.vlm(), pairs, "frost it") == "Freeze the subject"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "message", "requests"),
    [
        ((401, "wrong key secret-key"), r"HTTP 401 .*wrong key \*\*\*", 1),
        ((500, "down"), "after 3 attempts: HTTP 500", 3),
        ((302, ""), "HTTP 302", 1),
        ((200, "<html>"), "not a JSON answer", 1),
        ((200, "{}"), "no choices", 1),
        ((200, '{"choices": [{"message": {"content": null}}]}'), "no choices", 1),
        (chat(' "." '), "empty caption", 1),
        (chat("word " * 200), "200 words", 1),
        (chat("字" * 1200), "1 words, 1200 letters", 1),
    ],
)
def test_a_failing_endpoint_is_an_error_never_the_template(pairs, answer, message, requests):
    with Endpoint([answer]) as server, pytest.raises(CaptionError, match=message) as caught:
        caption_vlm(server.vlm(retries=2), pairs, "frost it")
    assert server.url in str(caught.value)
    assert "secret-key" not in str(caught.value) + repr(server.vlm())
    assert len(server.requests) == requests


def test_an_unreachable_endpoint_is_an_error(pairs):
    with Endpoint([chat("x")]) as server:
        gone = server.vlm(retries=1)
    with pytest.raises(CaptionError, match="after 2 attempts"):
        caption_vlm(gone, pairs, "frost it")
    with pytest.raises(CaptionError, match="not an http"):
        caption_vlm(VlmEndpoint("localhost:8000", "m"), pairs, "frost it")
