"""Plots of a run: what is in the numbers is in the picture."""

from __future__ import annotations

from collectionlora.training.drawings import COLOURS, draw_losses, draw_similarity


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def test_every_term_has_a_line_in_its_colour_and_higher_losses_are_higher() -> None:
    cycles = list(range(50))
    losses = {
        "fm": {"cycle": cycles, "loss": [1.0] * 50},
        "bs": {"cycle": cycles, "loss": [0.1] * 50},
    }
    picture = draw_losses(losses)
    places = {}
    for name, colour in zip(losses, COLOURS):
        found = [y for y in range(40, 390) if picture.getpixel((300, y)) == rgb(colour)]
        assert found, name
        places[name] = found[0]
    assert places["fm"] < places["bs"]


def test_nothing_to_draw_is_no_error() -> None:
    nothing = draw_losses({})
    assert draw_losses({"fm": {"cycle": [0], "loss": [0.0]}}).tobytes() == nothing.tobytes()
    assert draw_losses({"fm": {"cycle": [0], "loss": [1.0]}}).tobytes() != nothing.tobytes()


def test_large_cosines_are_coloured_and_the_diagonal_is_not() -> None:
    chosen = {"max": 0.9, "mean": 0.0, "matrix": [[1.0, 0.9], [-0.9, 1.0]]}
    picture = draw_similarity({"names": ["a", "b"], "chosen_tags": chosen})
    colours = {colour for _, colour in picture.getcolors(10_000)}
    assert (217, 110, 26) in colours  # 0.9
    assert (26, 128, 186) in colours  # -0.9
    assert (213, 94, 0) not in colours  # 1, which stands on the diagonal only
