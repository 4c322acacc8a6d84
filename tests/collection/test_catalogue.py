"""A catalogue that exists is valid, survives the header unchanged, and hostile ones are refused by name."""

from __future__ import annotations

import base64
import io
import json
import struct
import unicodedata
import zlib
from dataclasses import replace

import pytest
from PIL import Image

from collectionlora.collection.catalogue import (
    HEADER_KEY,
    VERSION,
    Catalogue,
    Effect,
    check_sigmas,
    fingerprint,
    slug,
)
from collectionlora.collection.errors import CollectionError


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


def header(catalogue: Catalogue, change=None) -> dict[str, str]:
    """The header of a catalogue after `change` has had its parsed JSON."""
    content = json.loads(catalogue.to_header()[HEADER_KEY])
    if change is not None:
        content = change(content) or content
    return {HEADER_KEY: json.dumps(content)}


class TestRoundTrip:
    """What goes into the header comes out of it."""

    def test_is_exact(self, catalogue):
        effects = tuple(
            replace(effect, thumbnail=picture(kind))
            for effect, kind in zip(catalogue.effects, ("PNG", "WEBP", "JPEG"), strict=True)
        )
        full = replace(catalogue, effects=effects)
        assert Catalogue.from_header(full.to_header()) == full
        assert Catalogue.from_header(catalogue.to_header()) == catalogue

    def test_is_text_that_safetensors_takes(self, catalogue):
        found = catalogue.to_header()
        assert found["format"] == "pt"
        assert all(isinstance(value, str) for value in found.values())

    @pytest.mark.parametrize(
        "text",
        [
            "<script>alert(1)</script><img src=x onerror=alert(1)>",
            '"quotes" \\ and \' and ${x} {{y}}',
            "../../etc/passwd",
            "أثر الصقيع",
            "霜の効果 ❄️ 👩‍🎨",
            "x" * 120,
        ],
    )
    def test_keeps_any_plain_text_as_it_is(self, text, catalogue):
        effect = Effect("frost", text, "<t_1>", text, text[:64])
        found = Catalogue.from_header(replace(catalogue, effects=(effect,)).to_header())
        assert found.effects == (effect,)

    def test_keeps_what_this_version_does_not_know(self, catalogue):
        def change(content):
            content["colours"] = {"a": [1, 2.5, None, True]}
            content["effects"][1]["strength"] = 0.8

        found = Catalogue.from_header(header(catalogue, change))
        assert found.extra == {"colours": {"a": [1, 2.5, None, True]}}
        assert found.effects[1].extra == {"strength": 0.8}
        again = json.loads(found.to_header()[HEADER_KEY])
        assert again["colours"] == {"a": [1, 2.5, None, True]}
        assert again["effects"][1]["strength"] == 0.8


class TestVersions:
    """Old readers of new files say so."""

    def test_a_newer_one_asks_for_an_update(self, catalogue):
        with pytest.raises(
            CollectionError, match=rf"newer version \({VERSION + 1}, .* update collectionlora"
        ):
            Catalogue.from_header(header(catalogue, lambda c: c.update(version=VERSION + 1, effects="other")))

    @pytest.mark.parametrize("version", [0, -1, "1", 1.0, None, True])
    def test_a_senseless_one_is_refused(self, version, catalogue):
        with pytest.raises(CollectionError, match="catalogue version"):
            Catalogue.from_header(header(catalogue, lambda c: c.update(version=version)))


class TestEffect:
    """Each field is checked, and named when it is wrong."""

    def good(self, **changes) -> Effect:
        return Effect(
            **{"name": "frost", "title": "Frost", "tag": "<f>", "prompt": "<f> freeze it"} | changes
        )

    @pytest.mark.parametrize(
        "name",
        ["", "Frost", "a b", "../x", "a/b", "a\\b", "..", "a.b", "é", "x" * 65, "a\n", None, 3, "con:"],
    )
    def test_names_are_identifiers(self, name):
        with pytest.raises(CollectionError, match="use 1 to 64 of a-z, 0-9 and _"):
            self.good(name=name)

    @pytest.mark.parametrize("field", ["title", "tag", "prompt", "category"])
    @pytest.mark.parametrize(
        "text",
        ["a\x00b", "a\x1b[2Jb", "a\rb", "a\tb", "a\u202eb", "a\u2066b", "a\u2028b", "a\x85b", "a\ud800b"],
    )
    def test_texts_hold_no_control_characters(self, text, field):
        with pytest.raises(
            CollectionError, match=rf"effect 'frost': {field} holds the control character U\+"
        ) as caught:
            self.good(**{field: text})
        assert str(caught.value).isprintable()

    def test_only_prompts_may_have_several_lines(self):
        assert self.good(prompt="<f> freeze\nit").prompt == "<f> freeze\nit"
        for field in ("title", "tag", "category"):
            with pytest.raises(CollectionError, match=r"U\+000A"):
                self.good(**{field: "a\nb"})

    @pytest.mark.parametrize(
        ("field", "limit"), [("title", 120), ("tag", 64), ("prompt", 4000), ("category", 64)]
    )
    def test_texts_are_not_endless(self, field, limit):
        assert self.good(**{field: "x" * limit})
        with pytest.raises(CollectionError, match=f"{field} has {limit + 1} characters, more than {limit}"):
            self.good(**{field: "x" * (limit + 1)})

    @pytest.mark.parametrize("field", ["title", "tag", "prompt"])
    @pytest.mark.parametrize(
        ("text", "what"), [("", "is empty"), (" \u3000", "is empty"), (None, "not text"), (5, "not text")]
    )
    def test_texts_are_given(self, text, what, field):
        with pytest.raises(CollectionError, match=f"{field} {what}|{field} is {what}"):
            self.good(**{field: text})

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"", "neither PNG, WebP nor JPEG"),
            (b"<svg onload=alert(1)>", "neither PNG, WebP nor JPEG"),
            (b"GIF89a", "neither PNG, WebP nor JPEG"),
            ("text", "neither PNG, WebP nor JPEG"),
            (picture()[:20], "damaged picture"),
            (b"RIFF\x00\x00\x00\x00WAVEfmt ", "damaged picture"),
            (b"\xff\xd8\xff rubbish", "damaged picture"),
            (picture(size=(1025, 1)), "1025 x 1 pixels, more than 1024"),
        ],
    )
    def test_thumbnails_are_small_pictures(self, data, what):
        with pytest.raises(CollectionError, match="effect 'frost': thumbnail") as caught:
            self.good(thumbnail=data)
        assert what in str(caught.value)

    def test_a_picture_that_would_fill_the_memory_is_refused_undecoded(self):
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100)))
        with pytest.raises(CollectionError, match="thumbnail"):
            self.good(thumbnail=bomb)


class TestCatalogue:
    """The parts fit together."""

    @pytest.mark.parametrize("field", ["name", "tag"])
    def test_names_and_tags_are_unique(self, field, catalogue):
        new = Effect("rain", "Rain", "<rain_x1>", "<rain_x1> make it rain")
        twin = replace(new, **{field: getattr(catalogue.effects[0], field)})
        with pytest.raises(CollectionError, match=f"effects 1 and 4 have the same {field}"):
            replace(catalogue, effects=(*catalogue.effects, twin))

    def test_has_effects(self, catalogue):
        with pytest.raises(CollectionError, match="without effects"):
            replace(catalogue, effects=())

    @pytest.mark.parametrize(
        "sigmas",
        [
            (),
            (1.0,),
            (1.0, 0.5),
            (0.9, 0.0),
            (1.0, 0.5, 0.5, 0.0),
            (1.0, 0.3, 0.5, 0.0),
            (1.0, float("nan"), 0.0),
            (1.0, float("inf"), 0.0),
            (1.0, 10**400, 0.0),
            (1.0, -0.5, 0.0),
            (1.0, "0.5", 0.0),
            (True, False),
            "10",
            None,
            5,
            {1: 0},
        ],
    )
    def test_sigmas_fall_strictly_from_one_to_zero(self, sigmas, catalogue):
        with pytest.raises(CollectionError, match="sigmas"):
            replace(catalogue, sigmas=sigmas)

    def test_sigmas_become_floats(self):
        assert check_sigmas([1, 0.5, 0]) == (1.0, 0.5, 0.0)

    @pytest.mark.parametrize(
        "base", [None, {}, {"architecture": "qwen_image"}, {"architecture": "x", "hash": 5}, []]
    )
    def test_the_base_is_identified(self, base, catalogue):
        with pytest.raises(CollectionError, match="base"):
            replace(catalogue, base=base)

    @pytest.mark.parametrize(
        ("said", "size"), [(512, 512), (None, 1024), ("512", 1024), (True, 1024), (10**9, 1024)]
    )
    def test_the_size_of_the_training_is_what_it_says_or_1024(self, said, size, catalogue):
        assert replace(catalogue, training={"long_side": said}).long_side == size

    @pytest.mark.parametrize(
        "training",
        [
            None,
            [],
            {"x": float("nan")},
            {"x": {1}},
            {5: 1},
            {"x": b"bytes"},
            {"x": "a\x1b[0m"},
            {"a\x00": 1},
            {"x": [[[[[[[[[[[1]]]]]]]]]]]},
        ],
    )
    def test_the_training_summary_is_plain_json(self, training, catalogue):
        with pytest.raises(CollectionError, match="training"):
            replace(catalogue, training=training)

    def test_looks_effects_up_and_suggests_the_nearest(self, catalogue):
        assert catalogue["sketch"] is catalogue.effects[1]
        with pytest.raises(CollectionError, match=r"no effect 'skech' .* did you mean sketch"):
            _ = catalogue["skech"]

    def test_knows_the_base_it_was_trained_on(self, catalogue, shapes):
        assert catalogue.fits(shapes)
        assert not catalogue.fits(shapes | {"img_in": (8, 17)})


class TestHostileHeader:
    """Whatever the header holds, the answer is a CollectionError that names the file."""

    def refused(self, text: str) -> str:
        with pytest.raises(CollectionError) as caught:
            Catalogue.from_header({HEADER_KEY: text}, "file.safetensors")
        message = str(caught.value)
        assert message.startswith("file.safetensors: ")
        assert message.isprintable()
        assert len(message) < 500
        return message

    @pytest.mark.parametrize(
        "text", ["", "{", "[" * 200_000, "\x00", "1" * 5000, '{"version": NaN}', "[]", "null", '"x"']
    )
    def test_that_is_no_catalogue(self, text):
        self.refused(text)

    @pytest.mark.parametrize("name", ["version", "effects", "sigmas", "base"])
    def test_with_a_part_missing(self, name, catalogue):
        assert name in self.refused(header(catalogue, lambda c: c.pop(name) and None)[HEADER_KEY])

    @pytest.mark.parametrize("name", ["name", "title", "tag", "prompt"])
    def test_with_a_field_missing(self, name, catalogue):
        message = self.refused(header(catalogue, lambda c: c["effects"][1].pop(name) and None)[HEADER_KEY])
        assert f"effect 2 has no '{name}'" in message

    @pytest.mark.parametrize("effects", [None, 5, {}, [], [3], [None], ["x"]])
    def test_with_no_effects(self, effects, catalogue):
        self.refused(header(catalogue, lambda c: c.update(effects=effects))[HEADER_KEY])

    @pytest.mark.parametrize(
        "thumbnail", ["%%%", "A", "ä", 5, [], base64.b64encode(b"hello").decode(), "iVBORw0KGgo="]
    )
    def test_with_a_broken_thumbnail(self, thumbnail, catalogue):
        message = self.refused(
            header(catalogue, lambda c: c["effects"][0].update(thumbnail=thumbnail))[HEADER_KEY]
        )
        assert "thumbnail" in message

    def test_with_an_endless_number(self, catalogue):
        text = header(catalogue)[HEADER_KEY].replace("0.75", "1e999")
        assert "sigmas" in self.refused(text)

    def test_with_none_at_all(self):
        with pytest.raises(CollectionError, match="plain LoRA, not a collection"):
            Catalogue.from_header({"format": "pt"}, "file")


class TestFingerprint:
    """Same Linears, same hash; anything else, another."""

    def test_depends_on_names_and_shapes_alone(self, shapes):
        first = fingerprint(shapes, "pocket")
        assert first["architecture"] == "qwen_image"
        assert first["blocks"] == 3
        assert first["name"] == "pocket"
        assert "name" not in fingerprint(shapes)
        backwards = dict(reversed(shapes.items()))
        assert fingerprint(backwards)["hash"] == first["hash"]
        for other in (shapes | {"img_in": (16, 8)}, {k: v for k, v in shapes.items() if k != "img_in"}):
            assert fingerprint(other)["hash"] != first["hash"]

    def test_of_another_architecture_says_so(self):
        assert fingerprint({"double_blocks.0.img": (1, 1)})["architecture"] == "unknown"
        with pytest.raises(CollectionError, match="without Linears"):
            fingerprint({})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Manga Tone!", "manga_tone"),
        ("1117_name", "1117_name"),
        ("Café  Noir", "cafe_noir"),
        ("漫画", "effect_8447fb05"),
        ("漫画 v1", "v1_86d3e534"),
        ("水彩 v1", "v1_7431c5b5"),
        ("한글", "effect_bd87f9bb"),
    ],
)
def test_slugs_are_stable_effect_names(text, name):
    assert slug(text) == name == slug(unicodedata.normalize("NFD", text))
    for long in ("x" * 300, "x漫" * 300):
        assert Effect(slug(long), "t", "<t>", "p")
