"""What is to be decoded in; the systems that do it out: one checkpoint in many ways, and baselines."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError
from diffasr.evaluate.normalise import NORMALISERS

Decoder = Literal["ctc", "ctc_beam", "ar", "ar_ctc", "diffusion", "seeded", "vote", "whisper"]
_REVISIONS: tuple[Decoder, ...] = ("diffusion", "seeded", "vote")
_PLAIN: tuple[Decoder, ...] = ("ctc", "ctc_beam", "ar", "ar_ctc")
_JOINT: tuple[Decoder, ...] = ("ctc_beam", "ar_ctc")
DECODERS = (*_PLAIN, *_REVISIONS)
_VARIED = {
    f.name: f.default for f in dataclasses.fields(SamplingOptions) if f.name not in ("steps", "seed", "alternatives")
}
"""Options that ``vary`` knows, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is decoded, how, and how it is scored."""

    decoders: Sequence[str] = ("ctc", "ar", "diffusion", "seeded")
    """``ctc_beam``: the beam's text that joint writing starts from, where the checkpoint has a model of letters;
    ``ar_ctc``: token by token, CTC and that model counting as in joint writing; ``diffusion``: from noise;
    ``seeded``: from CTC's text; ``vote``: several canvases from what CTC may have heard, merged."""
    steps: Sequence[int] = (8,)
    seeds: int = 1
    """Runs of each decoder that draws random numbers, with seeds from 0 up."""
    votes: int = 3
    """Canvases of the decoder ``vote``."""
    vary: Sequence[tuple[str, Sequence[str]]] = ()
    """Sampling options and their values, as text: diffusion decoders run with each combination of them."""
    baselines: Sequence[str] = ()
    """See ``baseline.load_baseline``."""
    beams: Sequence[int] = (1,)
    """Beams of the baselines."""
    normaliser: str = "basic"
    batch: int = 1
    """Recordings that are decoded together; baselines take one at a time."""
    threads: int | None = None
    """CPU threads. None: one a core."""
    device: str = "cpu"
    find_language: bool = False
    """Do not tell the systems what language they hear."""
    limit: int | None = None
    """Recordings of each language of each set, from its start."""
    vad: bool = True
    """Diffusion decoders listen only where the detector hears speech, in quiet sets and in recordings above 30 s."""

    def __post_init__(self) -> None:
        unknown = [d for d in self.decoders if d not in DECODERS]
        if unknown:
            raise OptionError(f"decoders can be {', '.join(DECODERS)}, got {unknown[0]!r}")
        if not self.decoders and not self.baselines:
            raise OptionError("there is nothing to decode with: name decoders or a baseline")
        for name in ("steps", "beams"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise OptionError(f"{name} must be numbers from 1 up, got {getattr(self, name)!r}")
        for name in ("seeds", "batch", "threads", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.votes < 2:
            raise OptionError(f"votes must be at least 2, got {self.votes}")
        _check_varied(self.vary)
        for baseline in self.baselines:
            check_baseline(baseline)
        if self.normaliser not in NORMALISERS:
            raise OptionError(f"normaliser can be {', '.join(NORMALISERS)}, got {self.normaliser!r}")


def check_baseline(spec: str) -> None:
    """Raise OptionError for what names no other recogniser; see ``baseline.load_baseline``."""
    family, _, rest = spec.partition(":")
    if family != "whisper" or not rest.removesuffix(":ct2"):
        raise OptionError(f"no baseline is called {spec!r}: give whisper:PATH_OR_ID or whisper:PATH_OR_ID:ct2")


def _check_varied(vary: Sequence[tuple[str, Sequence[str]]]) -> None:
    names = [name for name, _ in vary]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise OptionError(f"vary has {twice[0]} twice: name all of its values at once, as in {twice[0]}=1,2")
    for name, values in vary:
        if name not in _VARIED or not values:
            raise OptionError(f"vary takes values of {', '.join(_VARIED)}; got {name!r} with {len(values)} values")


@dataclass(frozen=True, kw_only=True)
class System:
    """One way to write down a recording."""

    name: str
    decoder: Decoder
    seed: int | None = None
    options: SamplingOptions | None = None
    """Of the diffusion decoders."""
    together: SamplingOptions | None = None
    """Of the others that use what joint writing does: how."""
    baseline: str = ""
    beam: int = 1
    vad: bool = True

    def definition(self) -> dict[str, Any]:
        """All that its rows depend on, the seed left out."""
        options = dataclasses.asdict(self.options) if self.options else {}
        options.pop("seed", None)
        facts: dict[str, Any] = {
            "decoder": self.decoder,
            "options": options,
            "baseline": self.baseline,
            "beam": self.beam,
        }
        if self.together:
            facts["together"] = dataclasses.asdict(self.together)
        return facts if self.vad else facts | {"vad": False}


def systems(options: EvaluationOptions) -> list[System]:
    """CTC and autoregressive first, then each diffusion decoder at each number of steps and seed, then baselines.

    A decoder that draws no random numbers has one seed: more would write the same again.
    """
    found = [
        System(name=name, decoder=name, together=SamplingOptions() if name in _JOINT else None)
        for name in _PLAIN
        if name in options.decoders
    ]
    kinds: list[Decoder] = [kind for kind in _REVISIONS if kind in options.decoders]
    for decoder, steps in product(kinds, sorted(set(options.steps))):
        for changes in combinations(options.vary):
            drawn = replace(_sampling(decoder, steps, options.votes), **changes)
            what = "".join(f" {name}={value}" for name, value in changes.items())
            for seed in range(options.seeds if _is_drawn(drawn) else 1):
                found.append(
                    System(
                        name=f"{decoder}-{steps}{what}",
                        decoder=decoder,
                        seed=seed,
                        options=replace(drawn, seed=seed),
                        vad=options.vad,
                    )
                )
    for spec in options.baselines:
        for beam in options.beams:
            name = f"{_short(spec)} beam {beam}"
            if any(s.name == name for s in found):
                raise OptionError(f"two baselines would both be called {name!r}: rename one of the folders")
            found.append(System(name=name, decoder="whisper", baseline=spec, beam=beam))
    return found


def combinations(vary: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    """Each choice of one value a name, as sampling options; nothing varied is one choice of nothing.

    Raises OptionError for a text that is no value of its option.
    """
    named = [[(name, _value(name, text)) for text in dict.fromkeys(values)] for name, values in vary]
    return [dict(choice) for choice in product(*named)]


def _value(name: str, text: str) -> Any:
    default = (0 if name == "ahead" else 0.0) if _VARIED[name] is None else _VARIED[name]
    kind: type = type(default)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise OptionError(f"{name} can't be {text!r}: its values are like {default!r}") from error


def _is_drawn(options: SamplingOptions) -> bool:
    """Whether random numbers are asked for, so that another seed writes another text."""
    is_calm = options.seed_noise == options.temperature == options.final_temperature == 0
    return not (
        is_calm
        and options.start == "ctc"
        and options.accept in ("auto", "joint", "prefix", "all")
        and options.votes == 1
    )


def _sampling(decoder: str, steps: int, votes: int) -> SamplingOptions:
    """From noise there is no prefix to confirm, so there the surest places are accepted."""
    match decoder:
        case "diffusion":
            return SamplingOptions(steps=steps, start="noise", accept="entropy")
        case "vote":
            return SamplingOptions(steps=steps, start="ctc", votes=votes)
    return SamplingOptions(steps=steps, start="ctc")


def _short(spec: str) -> str:
    """A baseline's name for tables: the last two parts of its path."""
    kind, _, place = spec.partition(":")
    return f"{kind}:{'/'.join(Path(place).parts[-2:])}"
