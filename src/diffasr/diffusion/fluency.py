"""How well a text reads, beside how well it was heard: lattices that know the letters of the language.

What a lattice says of a text is raised by the weighed log-probability of its letters and by a bonus for each, as in the
beam search that wrote the first draft, so that all steps look for the same.
"""

from dataclasses import dataclass

from diffasr.diffusion.lattice import Lattice
from diffasr.letters import END, START, LanguageLetters
from diffasr.text import Spelling


@dataclass(frozen=True)
class _Read:
    """A text from its start up to some place."""

    score: float
    letters: str
    half: bytes


class Fluency:
    """What the letters of texts are worth; texts are written as the vocabulary does, and remembered."""

    def __init__(self, letters: LanguageLetters, spelling: Spelling, *, weight: float, bonus: float) -> None:
        """weight: of the letters' log-probability. bonus: nats a letter."""
        self._letters, self._spelling, self._weight, self._bonus = letters, spelling, weight, bonus
        self._reach = letters.reach
        self._begun = {"": _Read(0.0, "", b"")}
        self._behind: dict[str, tuple[str, float]] = {}

    def begins(self, text: str) -> float:
        """Of a text that may go on."""
        return self._read(text).score

    def whole(self, text: str) -> float:
        """Of a text that ends here."""
        read = self._read(text)
        return read.score + self._of(read.letters, END)

    def joined(self, text: str, behind: str) -> float:
        """Of ``text`` and then ``behind``: only what stands at the seam is looked up anew."""
        read = self._read(text)
        letters, worth = self._rest(behind)
        if read.half or not read.letters or "\ufffd" in letters:  # half a letter is not worth what it is elsewhere
            return self.whole(text + behind)
        row, score = read.letters, read.score
        near = min(self._reach, len(letters))
        for letter in letters[:near]:
            score += self._of(row, letter)
            row = (row + letter)[-self._reach - 1 :]
        if near == len(letters):
            return score + self._of(row, END)
        return score + worth

    def _read(self, text: str) -> _Read:
        size = len(text)
        while text[:size] not in self._begun:
            size -= 1
        read = self._begun[text[:size]]
        for end in range(size + 1, len(text) + 1):
            read = self._begun[text[:end]] = self._longer(read, self._spelling.in_bytes(text[end - 1]))
        return read

    def _longer(self, read: _Read, byte: bytes) -> _Read:
        try:
            letter = (read.half + byte).decode()
        except UnicodeDecodeError:
            return _Read(read.score, read.letters, (read.half + byte)[-4:])
        if letter == START and not read.letters:
            return read
        return _Read(read.score + self._of(read.letters, letter), read.letters + letter, b"")

    def _of(self, before: str, letter: str) -> float:
        context = before[-self._reach :] if len(before) >= self._reach else START + before
        share = self._letters.log_probability(context, letter)
        return self._weight * share + self._bonus * (letter != END)

    def _rest(self, behind: str) -> tuple[str, float]:
        """The letters of the end of a text, and what the end itself is worth and those that have all before them that
        count."""
        if behind not in self._behind:
            letters, worth = self._spelling.in_bytes(behind).decode(errors="replace"), 0.0
            if len(letters) > self._reach:
                worth = self._of(letters, END)
            for place in range(len(letters) - 1, self._reach - 1, -1):
                worth += self._of(letters[:place], letters[place])
            self._behind[behind] = letters, worth
        return self._behind[behind]


class Fluent:
    """A lattice of a clip, read from left to right, and how well its texts read."""

    def __init__(self, lattice: Lattice, fluency: Fluency) -> None:
        self._lattice, self._fluency = lattice, fluency

    def whole(self, text: str) -> float:
        """See Lattice."""
        return self._lattice.whole(text) + self._fluency.whole(text)

    def begins(self, text: str) -> float:
        """See Lattice."""
        return self._lattice.begins(text) + self._fluency.begins(text)

    def joined(self, text: str, behind: str, backwards: Lattice) -> float:
        """See Lattice. ``backwards``: of the sound alone."""
        return self._lattice.joined(text, behind, backwards) + self._fluency.joined(text, behind)
