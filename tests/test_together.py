"""Laws of writing a batch of canvases together, with readers and writers that are plain functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.diffusion.together import LEEWAY, Draft, Writer, write
from diffasr.places import Place

END, V = 0, 9
texts = st.lists(st.lists(st.integers(1, V - 1), max_size=7), min_size=1, max_size=4)


def cost(row: int, text: Sequence[int], place: int, token: int) -> float:
    """What any place costs a token: a number that all of it is in."""
    return -(1 + sum(text[:place]) + 7 * row + 3 * place + token) / 8


class Reader:
    """It gives each token at each place its cost, and remembers what it read."""

    looks_ahead = False

    def __init__(self) -> None:
        self.asked: list[list[tuple[int, list[int]]]] = []

    def read(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
        self.asked.append([(row, list(text)) for row, text in wanted])
        return [[self.place(row, text, n) for n in range(len(text) + 1)] for row, text in wanted]

    def place(self, row: int, text: Sequence[int], number: int) -> Place:
        known = tuple(text)
        return Place((), (), lambda token: cost(row, known, number, token))

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Place:
        raise AssertionError("nobody looks ahead")


def stay(tokens: Sequence[int], places: Sequence[Place]) -> list[int]:
    assert len(places) == len(tokens) + 1
    return list(tokens)


def always(answer: list[int]) -> Writer:
    return Writer(lambda *_: answer)


def towards(answer: Sequence[int]) -> Writer:
    """One place of the answer more in each step."""

    def change(tokens: Sequence[int], _places: Sequence[Place]) -> list[int]:
        wrong = [n for n in range(len(answer)) if list(tokens[n : n + 1]) != list(answer[n : n + 1])]
        return [*answer[: wrong[0] + 1], *tokens[wrong[0] + 1 :]] if wrong else list(answer)

    return Writer(change)


def drafts(written: Sequence[Sequence[int]], writers: Sequence[Writer], size: int = 8, steps: int = 9) -> list[Draft]:
    return list(write(Reader(), writers, written, [size] * len(written), steps=steps, end=END))


def text(draft: Draft, row: int) -> list[int]:
    return [token for token in draft.tokens[row].tolist() if token != END]


@given(texts)
def test_a_text_that_stays_is_done_after_two_looks_and_scored_place_by_place(starts: list[list[int]]) -> None:
    first, last = drafts(starts, [Writer(stay)] * len(starts))
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
    (draft,) = drafts([[1, 2]], [always([1, 2, 3, 4, 5])], steps=1)
    scores = draft.log_probability[0].tolist()
    assert scores[2] == pytest.approx(cost(0, [1, 2], 2, 3)), "the place of the end was read"
    assert scores[3:] == [-20.0, -20.0, 0.0, 0.0, 0.0]


def test_a_full_canvas_ends_without_being_asked_where_it_has_no_place() -> None:
    seen: list[Sequence[Place]] = []

    def look(tokens: Sequence[int], places: Sequence[Place]) -> list[int]:
        seen.append(places)
        return list(tokens)

    (first, last) = drafts([[1, 2, 3, 4]], [Writer(look)], size=4)
    assert [len(places) for places in seen] == [5, 5]
    assert all((places[4].of(END), places[4].of(1)) == (0.0, -20.0) for places in seen)
    assert first.tokens.tolist() == last.tokens.tolist() == [[1, 2, 3, 4]]
    assert last.finished.all()


@pytest.mark.parametrize("start", [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]])
def test_what_a_canvas_does_not_hold_is_left_out(start: list[int]) -> None:
    found = drafts([start], [always([5, 6, 7, 8, 1, 2])], size=4)
    assert all(draft.tokens.tolist() == [[5, 6, 7, 8]] for draft in found)
    assert found[-1].finished.all()


def test_rows_have_room_of_their_own() -> None:
    (draft,) = write(Reader(), [always([1] * 9)] * 2, [[2], [2, 2, 2]], [3, 6], steps=1, end=END)
    assert draft.tokens.tolist() == [[1, 1, 1, END, END, END], [1] * 6]
    assert draft.log_probability.shape == (2, 6)


@dataclass(frozen=True)
class Story:
    """Texts that are written one after another, and what each is worth: the last stays."""

    texts: list[list[int]]
    worths: list[float]

    def rewritten(self, tokens: Sequence[int], _places: Sequence[Place]) -> list[int]:
        return self.texts[min(self.texts.index(list(tokens)) + 1, len(self.texts) - 1)]

    def worth(self, tokens: Sequence[int], places: Sequence[Place]) -> float:
        assert len(places) == len(tokens) + 1
        return self.worths[self.texts.index(list(tokens))]

    def text(self, number: int) -> list[int]:
        return self.texts[min(number, len(self.texts) - 1)]

    def best(self, steps: int) -> int | None:
        """The first of those worth most among the texts that so many steps have read, where the last is far worse."""
        known = [self.worths[min(number, len(self.worths) - 1)] for number in range(steps)]
        return known.index(max(known)) if max(known) - known[-1] > LEEWAY else None


@st.composite
def stories(draw: st.DrawFn) -> Story:
    written = draw(st.lists(st.lists(st.integers(1, V - 1), max_size=7), min_size=1, max_size=6, unique_by=tuple))
    return Story(written, [draw(st.sampled_from([-8.0, -4.0, 0.0, 1.0, 2.5, 6.0, 11.0])) for _ in written])


def written_by(several: Sequence[Story], *, is_weighed: bool = True) -> tuple[list[Draft], list[list[int]]]:
    """The drafts, and the rows that each step asked about, with their texts as the stories have them."""
    reader = Reader()
    writers = [Writer(story.rewritten, story.worth if is_weighed else None) for story in several]
    found = list(write(reader, writers, [s.texts[0] for s in several], [8] * len(several), steps=9, end=END))
    for step, asked in enumerate(reader.asked):
        assert asked == [(row, several[row].text(step)) for row, _ in asked], "the text itself is gone on with"
    return found, [[row for row, _ in asked] for asked in reader.asked]


def costs(row: int, read: Sequence[int], shown: Sequence[int]) -> list[float]:
    """What each place of a canvas costs: that it was read says how much, behind that an end is free and no more."""
    canvas = [*shown, *[END] * (8 - len(shown))]
    return [cost(row, read, n, token) if n <= len(read) else -20.0 * (token != END) for n, token in enumerate(canvas)]


@given(st.lists(stories(), min_size=1, max_size=3))
def test_the_draft_is_the_best_text_where_what_was_read_last_is_worth_far_less(several: list[Story]) -> None:
    found, asked = written_by(several)
    for step, draft in enumerate(found, 1):
        for row in asked[step - 1]:
            story, best = several[row], several[row].best(step)
            shown = story.text(step if best is None else best)
            read = story.text(step - 1 if best is None else best)
            assert text(draft, row) == shown
            assert draft.log_probability[row].tolist() == pytest.approx(costs(row, read, shown))


@given(st.lists(stories(), min_size=1, max_size=3))
def test_what_texts_are_worth_changes_nothing_but_what_is_shown(several: list[Story]) -> None:
    (found, asked), (plain, known) = written_by(several), written_by(several, is_weighed=False)
    assert asked == known
    for step, (draft, other) in enumerate(zip(found, plain, strict=True), 1):
        assert np.array_equal(draft.finished, other.finished)
        assert [text(other, row) for row in range(len(several))] == [story.text(step) for story in several]


@given(st.lists(stories(), min_size=2, max_size=3))
def test_a_row_is_weighed_against_itself_alone(several: list[Story]) -> None:
    together, _ = written_by(several)
    for row, story in enumerate(several):
        alone, _ = written_by([story])
        for draft, own in zip(together, alone, strict=False):
            assert text(draft, row) == text(own, 0)
        assert text(together[-1], row) == text(alone[-1], 0)


@pytest.mark.parametrize(
    ("worths", "shown"),
    [
        ([0.0, 0.0, 0.0], [1, 2, 2]),
        ([0.0, -LEEWAY, 0.0], [1, 2, 2]),
        ([0.0, -LEEWAY - 0.1, 0.0], [1, 0, 2]),
        ([0.0, -LEEWAY - 0.1, -LEEWAY - 0.1], [1, 0, 0]),
        ([0.0, 9.0, 3.0], [1, 2, 1]),
        ([9.0, 3.0, 5.0], [1, 0, 2]),
        ([-1e30, -1e30, -1e30], [1, 2, 2]),
    ],
)
def test_a_text_may_be_worth_a_little_less_than_the_best(worths: list[float], shown: list[int]) -> None:
    story = Story([[1], [2, 2], [3]], worths)
    found, _ = written_by([story])
    assert [text(draft, 0) for draft in found] == [story.texts[number] for number in shown]
    assert found[-1].finished.all()


def test_a_text_that_fills_its_canvas_is_handed_out_and_not_compared() -> None:
    full, short = [1, 2, 3, 4], [5, 6]
    story = Story([short, [5, 7], full, [7]], [0.0, -99.0, 99.0, -99.0])
    found = drafts([short], [Writer(story.rewritten, story.worth)], size=4)
    shown = [draft.tokens[0].tolist() for draft in found]
    assert shown == [[5, 7, END, END], full, [7, END, END, END], [*short, END, END]]
