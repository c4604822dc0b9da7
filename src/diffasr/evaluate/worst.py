"""Raw rows in; a page to listen to out: the recordings that a system got most wrong, its words beside the reference.

One file of HTML without scripts, which points at the audio files; every text in it is escaped.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from diffasr.evaluate.alignment import align, units
from diffasr.evaluate.folder import Row
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import Counts, character_counts, word_counts
from diffasr.evaluate.tally import SPACELESS
from diffasr.text import LANGUAGES

WORST = "worst.html"
MOST = 50
_PREFERRED = ("seeded", "diffusion", "vote")
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="script-src 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Recordings with most errors</title>
<style>
body { font: 16px/1.4 sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; color: #222; background: #fff }
article { border-top: 1px solid #ccc; padding: 0.7rem 0 }
audio { display: block; width: 100%; margin: 0.4rem 0 }
.pair { display: inline-flex; flex-direction: column; vertical-align: top; margin: 0 0.12rem 0.4rem; min-width: 0.6em }
.pair > * { min-height: 1.4em; padding: 0 0.15rem; white-space: pre }
.substitution { background: #fde9c8 } .insertion { background: #cfe3fb } .deletion { background: #f9d0d0 }
dt { font-weight: bold; font-size: 0.85rem; margin-top: 0.3rem } dd { margin: 0 }
</style>
</head>
<body>
"""


def worst_page(rows: Sequence[Row], headlines: Sequence[str], normaliser: str, folder: Path) -> str | None:
    """HTML of the ``MOST`` recordings with most character errors, to stand in ``folder``.

    The system is the first of ``headlines`` that revises: from CTC's text, else from noise, else by vote; None where
    there is none. Of a system with several seeds the first is shown.
    """
    decoders = {row["system"]: row["decoder"] for row in rows}
    chosen = [name for kind in _PREFERRED for name in headlines if decoders.get(name) == kind]
    if not chosen:
        return None
    name = chosen[0]
    texts: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        texts.setdefault((row["set"], row["id"]), {}).setdefault(row["system"], row)
    counted = [(_counts(said[name], normaliser), place, said) for place, said in sorted(texts.items()) if name in said]
    wrong = sorted((c for c in counted if c[0].errors), key=lambda c: -c[0].errors)[:MOST]
    legend = "".join(f'<span class="{kind}">{kind}</span> ' for kind in ("substitution", "insertion", "deletion"))
    parts = [
        _HEAD,
        f"<h1>Recordings with most errors: {escape(name)}</h1>\n",
        f"<p>Normaliser: {escape(normaliser)}. The {len(wrong)} of {len(counted)} recordings with most characters "
        f"wrong. Above the reference, below what was written: {legend}</p>\n",
        *(_article(said, name, [n for n in headlines if n != name], normaliser, folder) for _, _, said in wrong),
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def _sides(row: Row, normaliser: str) -> tuple[str, str]:
    reference, hypothesis = (normalise(row[side], row["language"], normaliser) for side in ("reference", "hypothesis"))
    return reference, hypothesis


def _counts(row: Row, normaliser: str) -> Counts:
    return character_counts(*_sides(row, normaliser))


def _article(said: Mapping[str, Row], name: str, others: Sequence[str], normaliser: str, folder: Path) -> str:
    """One recording: player, alignment, and the texts as they were written, those of the systems ``others`` below."""
    row = said[name]
    code = row["language"]
    title = f"{row['set']} {row['id']}"
    spoken = f"{LANGUAGES.get(code, code)}, {row['duration']:.1f} s"
    texts = [("reference", row["reference"])]
    for system in (name, *(other for other in others if other in said)):
        texts.append((f"{system}: {_rates(said[system], normaliser)}", said[system]["hypothesis"]))
    listed = "".join(
        f'<dt>{escape(label)}</dt><dd lang="{escape(code)}">{escape(text)}</dd>\n' for label, text in texts
    )
    pairs = align(*(units(side, code) for side in _sides(row, normaliser)))
    return (
        f'<article lang="{escape(code)}">\n<h2 lang="en">{escape(title)}</h2>\n'
        f'<p lang="en">{escape(spoken)}; {escape(_rates(row, normaliser))}</p>\n{_player(row["audio"], folder)}\n'
        f'<div class="aligned">{_aligned(pairs)}</div>\n<dl lang="en">\n{listed}</dl>\n</article>\n'
    )


def _rates(row: Row, normaliser: str) -> str:
    reference, hypothesis = _sides(row, normaliser)
    kinds = [("CER", character_counts(reference, hypothesis))]
    if row["language"] not in SPACELESS:
        kinds.append(("WER", word_counts(reference, hypothesis)))
    said = [f"{kind} {100 * c.rate:.1f} % ({c.errors} of {c.size})" for kind, c in kinds if c.size]
    return ", ".join(said) or f"{kinds[0][1].errors} characters where nothing was said"


def _player(audio: str, folder: Path) -> str:
    """A player of the file at ``audio``, by its path from ``folder`` or, on another drive, by its address."""
    if not audio:
        return '<p lang="en">No file to play: the recording came out of a data set.</p>'
    path = Path(audio).resolve()
    try:
        place = quote(Path(os.path.relpath(path, folder.resolve())).as_posix())
    except ValueError:
        place = path.as_uri()
    return f'<audio controls preload="none" src="{escape(place)}"></audio>'


def _aligned(pairs: Iterable[tuple[str | None, str | None]]) -> str:
    return " ".join(
        f'<span class="pair {_kind(a, b)}">{_side("reference", a)}{_side("hypothesis", b)}</span>' for a, b in pairs
    )


def _kind(reference: str | None, hypothesis: str | None) -> str:
    if reference is None:
        return "insertion"
    if hypothesis is None:
        return "deletion"
    return "hit" if reference == hypothesis else "substitution"


def _side(name: str, text: str | None) -> str:
    return f'<span class="{name}">{escape(text or "")}</span>'
