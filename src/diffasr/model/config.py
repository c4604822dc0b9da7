"""What a checkpoint is: sizes and choices that travel inside it as config.json."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from diffasr.errors import ModelError

T = TypeVar("T")

BY_LANGUAGE = {"joint_weight": 0.43, "caution": 0.0, "letter_weight": 0.3, "letter_bonus": 1.2, "guidance": 0.0}
"""Sampling options that a checkpoint may set for a language, and what they are where it does not."""
HEAD_WIDTH = 64
"""Channels of a head of the projector's transformer layers."""
HANDICAP = 6.0
"""What a later place's attention score starts lower by in a Whisper's decoder, in nats."""
BLIND = 100.0
"""The handicap from which on nothing is left of a later place."""
PACE = 10.0
"""How much faster than its number a head's handicap moves, so that one learning rate suits it too."""
HEARD = 0.5
"""What a CTC label counts for when the language is to be found; less than 1, for neighbours say much the same."""
SURE = 100.0
"""Nats that are between the language that was told and all others."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The frozen Whisper encoder."""

    mels: int
    width: int
    heads: int
    layers: int
    hidden: int
    positions: int = 1500
    mode: Literal["natural", "padded", "whole"] = "natural"
    """``natural``: only the real frames. ``padded``: always 30 s, as Whisper was trained, of which the real frames are
    kept. ``whole``: 30 s, and all of it is kept."""


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """The convolutions between encoder and language model."""

    hidden: int
    strides: int
    """How many of its convolutions halve the rate."""
    steady: int = 0
    """How many convolutions behind them keep it."""
    layers: int = 0
    """Transformer layers over the audio tokens."""
    letters: int = 0
    """Most letters of a CTC label; 0: the whole vocabulary. See Tokenizer."""
    norms: tuple[str, ...] = ("norm", "out_norm")
    """Which of its two norms it has."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Whisper's decoder as a denoiser."""

    vocabulary: int
    width: int
    heads: int
    layers: int
    hidden: int
    positions: int = 448

    def check(self, tokens: int) -> None:
        """Raises ModelError for a tokenizer that has not so many tokens."""
        if tokens != self.vocabulary:
            raise ModelError(f"the tokenizer has {tokens} tokens, config.json says {self.vocabulary}")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How sure to be of a word, learned on speech that the model was not trained on: a logistic map of its evidence."""

    bias: float
    weights: dict[str, float]
    """Of each part of the evidence."""


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """A DiffusionGemma that stays in its own repository, as the ear does, and how its prompt is worded."""

    source: str
    """Hub id or folder of the language model."""
    whisper: str
    """Hub id or folder of the Whisper whose encoder listens."""
    before: tuple[int, ...]
    """Token ids before the audio tokens."""
    languages: tuple[int, ...]
    """The token of each of ``text.LANGUAGES``, which ends the prompt."""
    after: tuple[int, ...] = ()
    """Token ids between the audio tokens and the language."""
    rank: int = 16
    """Of the LoRA on q, k, v, o of both stacks."""
    alpha: int = 32
    """LoRA counts ``alpha / rank``."""
    revision: str | None = None
    """Commit, tag or branch of ``source``; None: the newest."""
    whisper_revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One checkpoint. What ``decoder`` is decides the backbone."""

    name: str
    encoder: EncoderConfig
    projector: ProjectorConfig
    decoder: DecoderConfig | GemmaConfig
    calibration: Calibration | None = None
    decoding: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """By language: some of the sampling options (BY_LANGUAGE) that count where nothing else is asked for."""

    @property
    def backbone(self) -> Literal["whisper", "gemma"]:
        """Which kind of language model it is."""
        return "gemma" if isinstance(self.decoder, GemmaConfig) else "whisper"

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps({"backbone": self.backbone} | dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read config.json; raises ModelError that names what is missing, unknown or of the wrong kind."""
        try:
            fields = json.loads(text)
            kind = _DECODERS.get(str(fields.get("backbone")))
            if kind is None:
                raise ModelError(
                    f"config.json names backbone {fields.get('backbone')!r}; this loader knows {', '.join(_DECODERS)}"
                )
            return cls(
                name=fields["name"],
                encoder=_read(EncoderConfig, fields["encoder"]),
                projector=_read(ProjectorConfig, fields["projector"]),
                decoder=_read(kind, {name: value for name, value in fields["decoder"].items() if name not in _GONE}),
                calibration=_read_calibration(fields.get("calibration")),
                decoding=_read_decoding(fields.get("decoding")),
            )
        except (json.JSONDecodeError, AttributeError) as error:
            raise ModelError(f"config.json is not JSON of a diffasr model: {error}") from error
        except KeyError as error:
            raise ModelError(f"config.json lacks {error}: it is not of a diffasr model") from error


_MAY_BE_NONE = {(ProjectorConfig, name) for name in ("steady", "layers", "letters")}
_GONE = ("draft",)
"""What older checkpoints say of themselves and nobody asks any more, so that they load: here, layers of a drafter."""
_DECODERS: dict[str, type[DecoderConfig | GemmaConfig]] = {"whisper": DecoderConfig, "gemma": GemmaConfig}


def _read_calibration(fields: dict[str, Any] | None) -> Calibration | None:
    """None for a checkpoint that has none, or was made before there were any."""
    if fields is None:
        return None
    if set(fields) != {"bias", "weights"}:
        raise ModelError(f"config.json: calibration has {', '.join(fields)}, not bias and weights: calibrate it again")
    numbers = [fields["bias"], *fields["weights"].values()]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise ModelError(f"config.json: calibration holds {numbers}, which are not all numbers: calibrate it again")
    return Calibration(bias=fields["bias"], weights=dict(fields["weights"]))


def _read_decoding(fields: Any) -> dict[str, dict[str, float]]:
    """Nothing for a checkpoint that was made before there was any."""
    found: Any = {} if fields is None else fields
    settings = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(s, dict) and set(s) <= BY_LANGUAGE.keys() for s in settings):
        raise ModelError(f"config.json: decoding is {found!r}, not {', '.join(BY_LANGUAGE)} of some languages")
    numbers = [number for setting in found.values() for number in setting.values()]
    if not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
        raise ModelError(f"config.json: decoding holds {numbers}, which are not all numbers from 0 up")
    return {code: dict(setting) for code, setting in found.items()}


def _read(kind: type[T], fields: dict[str, Any]) -> T:
    try:
        made = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except TypeError as error:
        raise ModelError(f"config.json: {kind.__name__}: {error}") from error
    for name, value in fields.items():
        least = 0 if (kind, name) in _MAY_BE_NONE else 1
        if not _is_valid(name, value, least):
            raise ModelError(f"config.json: {kind.__name__}: {name} is {value!r}")
    return made


def _is_valid(name: str, value: Any, least: int) -> bool:
    match name:
        case "mode":
            return value in ("natural", "padded", "whole")
        case "source" | "whisper":
            return isinstance(value, str) and value != ""
        case "revision" | "whisper_revision":
            return value is None or isinstance(value, str)
        case "norms":
            return isinstance(value, list) and set(value) <= {"norm", "out_norm"}
        case "before" | "after" | "languages":
            return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)
    return type(value) is int and value >= least
