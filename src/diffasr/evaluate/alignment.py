"""Two normalised texts in, their units side by side out: words, or letters in a language without words."""

from collections.abc import Sequence

from diffasr.errors import OptionError
from diffasr.evaluate.tally import SPACELESS

_NOTHING = "\0"  # in no text


def units(text: str, language: str) -> list[str]:
    """What the rates of ``language`` count: words cut at white space, or characters."""
    return list(text) if language in SPACELESS else text.split()


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Pairs by a fewest-edits alignment; None where a side has nothing. Raises OptionError without kaldialign."""
    try:
        from kaldialign import align as pair_up  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise OptionError("alignments need kaldialign: pip install 'diffasr[evaluate]'") from error
    pairs = pair_up(list(reference), list(hypothesis), _NOTHING)
    return [(None if a == _NOTHING else a, None if b == _NOTHING else b) for a, b in pairs]
