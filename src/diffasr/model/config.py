"""What a checkpoint is: sizes and choices that travel inside it as config.json."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from diffasr.errors import ModelError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The frozen Whisper encoder."""

    mels: int
    width: int
    heads: int
    layers: int
    hidden: int
    positions: int = 1500
    mode: Literal["natural", "padded"] = "natural"
    """``natural``: only the real frames. ``padded``: always 30 s, as Whisper was trained."""


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """The convolutions between encoder and language model."""

    hidden: int
    strides: int
    layers: int = 0
    """Transformer layers over the audio tokens."""
    letters: int = 0
    """Most letters of a CTC label; 0: the whole vocabulary. See Tokenizer."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Whisper's decoder as a denoiser."""

    vocabulary: int
    width: int
    heads: int
    layers: int
    hidden: int
    positions: int = 448


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One checkpoint. The language model is ``decoder`` (whisper backbone)."""

    name: str
    encoder: EncoderConfig
    projector: ProjectorConfig
    decoder: DecoderConfig
    backbone: Literal["whisper"] = "whisper"

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read config.json; raises ModelError that names what is missing, unknown or of the wrong kind."""
        try:
            fields = json.loads(text)
            if fields.get("backbone") != "whisper":
                raise ModelError(f"config.json names backbone {fields.get('backbone')!r}; this loader knows whisper")
            return cls(
                name=fields["name"],
                encoder=_read(EncoderConfig, fields["encoder"]),
                projector=_read(ProjectorConfig, fields["projector"]),
                decoder=_read(DecoderConfig, fields["decoder"]),
            )
        except (json.JSONDecodeError, AttributeError) as error:
            raise ModelError(f"config.json is not JSON of a diffasr model: {error}") from error
        except KeyError as error:
            raise ModelError(f"config.json lacks {error}: it is not of a diffasr model") from error


def _read(kind: type[T], fields: dict[str, Any]) -> T:
    try:
        made = kind(**fields)
    except TypeError as error:
        raise ModelError(f"config.json: {kind.__name__}: {error}") from error
    for name, value in fields.items():
        least = 0 if name in ("layers", "letters") and kind is ProjectorConfig else 1
        if value not in ("natural", "padded") if name == "mode" else type(value) is not int or value < least:
            raise ModelError(f"config.json: {kind.__name__}: {name} is {value!r}")
    return made
