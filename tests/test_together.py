"""Laws of writing a batch of canvases together, with readers and writers that are plain functions."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.diffusion.together import Draft, write
from diffasr.places import Place

END, V = 0, 9
texts = st.lists(st.lists(st.integers(1, V - 1), max_size=7), min_size=1, max_size=4)
Write = Callable[[Sequence[int], Sequence[Place]], list[int]]


def cost(row: int, text: Sequence[int], place: int, token: int) -> float:
    """What any place costs a token: a number that all of it is in."""
    return -(1 + sum(text[:place]) + 7 * row + 3 * place + token) / 8


class Reader:
    """It gives each token at each place its cost, and remembers what it read."""

    drafts = False

    def __init__(self) -> None:
        self.asked: list[list[tuple[int, list[int]]]] = []

    def read(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
        self.asked.append([(row, list(text)) for row, text in wanted])
        return [[self.place(row, text, n) for n in range(len(text) + 1)] for row, text in wanted]

    def place(self, row: int, text: Sequence[int], number: int) -> Place:
        known = tuple(text)
        return Place((), (), lambda token: cost(row, known, number, token))

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Place:
        raise AssertionError("nobody drafts")


def stays(tokens: Sequence[int], places: Sequence[Place]) -> list[int]:
    assert len(places) == len(tokens) + 1
    return list(tokens)


def towards(answer: Sequence[int]) -> Write:
    """One place of the answer more in each step."""

    def change(tokens: Sequence[int], _places: Sequence[Place]) -> list[int]:
        wrong = [n for n in range(len(answer)) if list(tokens[n : n + 1]) != list(answer[n : n + 1])]
        return [*answer[: wrong[0] + 1], *tokens[wrong[0] + 1 :]] if wrong else list(answer)

    return change


def drafts(written: Sequence[Sequence[int]], writers: Sequence[Write], size: int = 8, steps: int = 9) -> list[Draft]:
    return list(write(Reader(), writers, written, [size] * len(written), steps=steps, end=END))


def text(draft: Draft, row: int) -> list[int]:
    return [token for token in draft.tokens[row].tolist() if token != END]


@given(texts)
def test_a_text_that_stays_is_done_after_two_looks_and_scored_place_by_place(starts: list[list[int]]) -> None:
    first, last = drafts(starts, [stays] * len(starts))
    assert (first.step, last.step) == (1, 2)
    assert not first.finished.any() and last.finished.all()
    for row, start in enumerate(starts):
        assert last.tokens[row].tolist() == start + [END] * (8 - len(start)), "its size, closed with ends"
        read = [cost(row, start, place, token) for place, token in enumerate([*start, END])]
        assert last.log_probability[row].tolist() == pytest.approx(read + [0.0] * (7 - len(start)))


@given(texts, texts)
def test_every_row_gets_where_it_would_alone_and_is_not_asked_about_again(
    starts: list[list[int]], answers: list[list[int]]
) -> None:
    count = min(len(starts), len(answers))
    reader, writers = Reader(), [towards(answer) for answer in answers[:count]]
    together = list(write(reader, writers, starts[:count], [8] * count, steps=20, end=END))
    asked = [[row for row, _ in batch] for batch in reader.asked]
    for row in range(count):
        alone = drafts([starts[row]], [writers[row]], steps=20)
        assert text(together[-1], row) == text(alone[-1], 0) == answers[row]
        assert [row in batch for batch in asked] == [n < len(alone) for n in range(len(asked))]
        for draft, own in zip(together, alone, strict=False):
            assert draft.finished[row] == own.finished[0]
            assert np.array_equal(draft.tokens[row], own.tokens[0])


def test_no_more_steps_than_asked_for_and_each_draft_is_kept_as_it_was() -> None:
    found = drafts([[1, 1, 1, 1]], [towards([2, 3, 4, 5])], steps=3)
    assert [text(draft, 0) for draft in found] == [[2, 1, 1, 1], [2, 3, 1, 1], [2, 3, 4, 1]]
    assert not found[-1].finished.any()


def test_a_token_that_was_not_read_where_it_stands_costs_twenty_nats() -> None:
    """Behind the end that was read a step may write more: one such token must not outweigh the whole text."""
    (draft,) = drafts([[1, 2]], [lambda *_: [1, 2, 3, 4, 5]], steps=1)
    scores = draft.log_probability[0].tolist()
    assert scores[2] == pytest.approx(cost(0, [1, 2], 2, 3)), "the place of the end was read"
    assert scores[3:] == [-20.0, -20.0, 0.0, 0.0, 0.0]


def test_a_full_canvas_ends_without_being_asked_where_it_has_no_place() -> None:
    seen: list[Sequence[Place]] = []
    (first, last) = drafts([[1, 2, 3, 4]], [lambda tokens, places: seen.append(places) or list(tokens)], size=4)
    assert [len(places) for places in seen] == [5, 5]
    assert all((places[4].of(END), places[4].of(1)) == (0.0, -20.0) for places in seen)
    assert first.tokens.tolist() == last.tokens.tolist() == [[1, 2, 3, 4]]
    assert last.finished.all()


@pytest.mark.parametrize("start", [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]])
def test_what_a_canvas_does_not_hold_is_left_out(start: list[int]) -> None:
    found = drafts([start], [lambda *_: [5, 6, 7, 8, 1, 2]], size=4)
    assert all(draft.tokens.tolist() == [[5, 6, 7, 8]] for draft in found)
    assert found[-1].finished.all()


def test_rows_have_room_of_their_own() -> None:
    (draft,) = write(Reader(), [lambda *_: [1] * 9] * 2, [[2], [2, 2, 2]], [3, 6], steps=1, end=END)
    assert draft.tokens.tolist() == [[1, 1, 1, END, END, END], [1] * 6]
    assert draft.log_probability.shape == (2, 6)
