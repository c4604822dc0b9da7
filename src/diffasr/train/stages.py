"""A recipe: what is trained, in which order, on what. Read from TOML; unknown keys are refused."""

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from diffasr.errors import RecipeError
from diffasr.model.loaded import Precision
from diffasr.text import LANGUAGES
from diffasr.train.augment import Augment

PARTS = ("encoder", "projector", "conditioning", "embedding", "decoder", "lora")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with fixed settings. What is not in ``rates`` stays frozen."""

    name: str
    steps: int
    rates: dict[str, float]
    """Peak learning rate of each part that trains, by its name in PARTS."""
    minutes: float | None = None
    """Ends the stage even if steps are left, and the rates fall by the clock, looks at ``dev`` included: for a machine
    that is lent. Such a run is not the same twice."""
    warmup: int = 100
    """Steps from 0 to the peak; from there a cosine leads to ``final_rate``."""
    final_rate: float = 0.05
    """Share of the peak at the last step."""
    seconds: float = 120.0
    """Audio a batch, padding included."""
    batches: int = 1
    """Batches a step, whose gradients are averaged: a multiple of the number of processes, which share them."""
    diffusion: float = 1.0
    """Weight of the diffusion loss."""
    ar: float = 0.0
    """Weight of the autoregressive loss."""
    ctc: float = 0.0
    """Weight of the CTC loss."""
    distil: float = 0.0
    """Weight of the distance from the recipe's teacher, with the causal mask on."""
    teaches: tuple[str, ...] = ("en", "de", "fr", "es", "zh")
    """Languages in which the teacher is worth listening to."""
    ctc_extra: int = 3072
    """Labels that CTC tells apart from those of the batch, drawn anew each step."""
    ar_share: float = 0.25
    """Share of a batch's rows that the losses with the causal mask on see."""
    ar_draft: float = 0.0
    """Share of those rows that read what CTC may have heard instead of the truth."""
    drift: float = 0.0
    """Share of such drafts that, up to a cut, have words too many or too few, as at inference."""
    diffusion_share: float = 1.0
    """Share of a batch's rows that the diffusion loss sees."""
    encoder_layers: int = 2
    """How many of the encoder's last layers learn, when ``rates`` has encoder."""
    full_share: float = 0.2
    """Share of the noisy canvases that are nothing but noise."""
    draft_share: float = 0.0
    """Share of the canvases that start from CTC's text instead of the noisy truth."""
    draft_noise: float = 0.3
    """Most noise on such a draft: its level is uniform from 0."""
    hint_drop: float = 0.1
    """Share of the rows that get no hints."""
    audio_drop: float = 0.0
    """Share of the rows that the diffusion loss sees without their sound and hints, so that decoding can be guided
    (``SamplingOptions.guidance``); not for gemma."""
    blur: float = 1.0
    """Most Gumbel noise on CTC's logits before they seed or hint."""
    conditioned_share: float = 0.5
    """Share of the steps with self-conditioning."""
    unroll_share: float = 0.0
    """Share of the rows of such a step whose canvas is the model's own draft (arXiv:2112.06749)."""
    spec_augment: float = 0.0
    """Share of the rows with bands and spans of the log-mel features blanked (SpecAugment); the teacher hears them all.
    For manifests."""
    mask: float = 0.0
    """Share of the rows with spans of frames blanked (SpecAugment over time)."""
    dropout: float = 0.0
    """Share of the numbers in the frames that are set to 0."""
    slack: int = 12
    """Most extra canvas places that a batch gets, at random, before the bucket is chosen."""
    smoothing: float = 0.0
    """Share of each target token that is spread over the vocabulary (label smoothing)."""
    ema: float = 0.999
    """Decay of the average weights, which the stage ends with."""
    clip: float = 1.0
    """Largest gradient norm."""
    weight_decay: float = 0.01
    muon: bool = False
    """Muon instead of AdamW for the matrices of encoder, projector and decoder; the rates stay. See optimiser.py."""
    scripts: tuple[str, ...] = ()
    """Whose tokens learn when ``rates`` has embedding: the beginnings of the Unicode names of their letters, as in
    DEVANAGARI. CTC's labels rest then, so that CTC stays as it was. Empty: all learn."""
    lora_rank: int = 16
    """Of the adapters, when ``rates`` has lora."""

    def __post_init__(self) -> None:
        self._check_rates()
        if min(self.steps, self.batches, self.lora_rank, self.encoder_layers) < 1 or self.seconds <= 0:
            raise RecipeError(f"stage {self.name}: steps, seconds, batches, lora_rank, encoder_layers must be above 0")
        if self.warmup < 0 or self.slack < 0 or (self.minutes is not None and not self.minutes > 0):
            raise RecipeError(f"stage {self.name}: warmup and slack must be 0 or more, minutes above 0 or left out")
        unknown = set(self.teaches) - set(LANGUAGES)
        if unknown:
            raise RecipeError(f"stage {self.name}: teaches names {sorted(unknown)}; languages are {list(LANGUAGES)}")
        for name in ("ar_share", "ar_draft", "drift", "diffusion_share", "full_share", "draft_share",
                     "draft_noise", "hint_drop", "audio_drop", "spec_augment", "mask", "dropout", "conditioned_share",
                     "unroll_share", "final_rate", "smoothing", "ema"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"stage {self.name}: {name} is a share from 0 to 1, got {getattr(self, name)}")
        if self.clip <= 0 or min(*self.rates.values(), self.weight_decay, self.ctc_extra, self.blur) < 0:
            raise RecipeError(
                f"stage {self.name}: clip must be above 0, rates, weight_decay, ctc_extra and blur 0 or more"
            )
        weights = (self.diffusion, self.ar, self.ctc, self.distil)
        if min(weights) < 0 or not sum(weights):
            raise RecipeError(f"stage {self.name}: loss weights must be 0 or more, and one above 0")

    def _check_rates(self) -> None:
        """What trains, and what is said of it."""
        unknown = set(self.rates) - set(PARTS)
        if unknown or not self.rates:
            raise RecipeError(f"stage {self.name}: rates names {sorted(unknown) or 'nothing'}; parts are {PARTS}")
        if "lora" in self.rates and "decoder" in self.rates:
            raise RecipeError(f"stage {self.name}: train the decoder or its lora, not both")
        if self.scripts and "embedding" not in self.rates:
            raise RecipeError(f"stage {self.name}: scripts is for rates that have embedding")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run. Paths are relative to the recipe's folder."""

    name: str
    init: Path | str
    """Where to start from: a checkpoint's folder, a Whisper or a DiffusionGemma (folder or hub id). See start.py."""
    dev: Path
    """The feature store, or manifest, that is scored now and then, and never trained on."""
    stages: tuple[Stage, ...]
    features: tuple[Path, ...] = ()
    """Feature stores to train on; or"""
    manifests: tuple[Path | str, ...] = ()
    """manifests or tar shards to train on, here or remote, whose sound is changed and encoded in each step."""
    augment: Augment = field(default_factory=Augment)
    """How that sound is changed."""
    teacher: Path | None = None
    """The checkpoint that the loss ``distil`` keeps near to."""
    shares: dict[str, float] | None = None
    """How much of an epoch each language gets; None: as it comes."""
    buckets: int = 0
    """Batches are of so many classes of length, each with as many rows as fit; 0: of neighbours in length."""
    workers: int = 0
    """Processes that read and change sound ahead, while the device computes; 0: it waits for each batch."""
    seed: int = 0
    autocast: bool = True
    """Matrix products in bfloat16; weights that learn stay float32."""
    precision: Precision = "float32"
    """Of weights that stay frozen; int8 and int4 are for gemma."""
    recompute: bool = False
    """Gradient checkpointing: less memory, about a third more work."""
    spread: bool = False
    """Each process holds a part of a frozen gemma (FSDP2), not all of it."""
    evaluate_every: int = 500
    """Steps between looks at ``dev``."""
    evaluate_count: int = 60
    """Utterances that such a look reads, spread over ``dev``."""
    save_every: int = 250
    folder: Path = field(default=Path())

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len({*names, "model"}) <= len(names):  # out/model holds the result
            raise RecipeError(f"{self.name}: each stage needs a name of its own, and not model, got {names}")
        if min(self.evaluate_every, self.evaluate_count, self.save_every) < 1 or min(self.buckets, self.workers) < 0:
            raise RecipeError(
                f"{self.name}: evaluate_every, evaluate_count and save_every must be at least 1, buckets and workers 0 "
                "or more"
            )
        if self.precision not in get_args(Precision):
            raise RecipeError(f"{self.name}: precision is one of {get_args(Precision)}, got {self.precision!r}")
        if bool(self.manifests) == bool(self.features):
            raise RecipeError(f"{self.name}: name features or manifests to train on, one of the two")
        for stage in self.stages:
            self._check(stage)
        unknown = set(self.shares or ()) - set(LANGUAGES)
        if unknown:
            raise RecipeError(f"{self.name}: shares names {sorted(unknown)}; languages are {', '.join(LANGUAGES)}")
        if self.shares is not None and (min(self.shares.values(), default=0) < 0 or not sum(self.shares.values())):
            raise RecipeError(f"{self.name}: shares must be 0 or more, and one above 0")

    def _check(self, stage: Stage) -> None:
        """What a stage needs of the recipe."""
        if "encoder" in stage.rates and not self.manifests:
            raise RecipeError(f"{self.name}: stage {stage.name} trains the encoder: name manifests, not features")
        if stage.spec_augment > 0 and not self.manifests:
            raise RecipeError(
                f"{self.name}: stage {stage.name} has spec_augment: name manifests, features have no mel bands"
            )
        if stage.distil > 0 and self.teacher is None:
            raise RecipeError(f"{self.name}: stage {stage.name} has a weight for distil: name a teacher")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Read a recipe; raises RecipeError that names the key."""
        file = Path(path)
        if file.is_dir():
            file = file / "recipe.toml"
        if not file.is_file():
            raise RecipeError(f"no recipe at {file}")
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{file}: {error}") from error
        base = file.parent
        try:
            stages = tuple(_checked(Stage, row | _tuples(row)) for row in table.pop("stage"))
            table["init"] = place_of(base, table["init"])
            table["dev"] = base / table["dev"]
            table["features"] = tuple(base / p for p in table.get("features", ()))
            table["manifests"] = tuple(p if "://" in p else base / p for p in table.get("manifests", ()))
            if "teacher" in table:
                table["teacher"] = base / table["teacher"]
            table["augment"] = _checked(Augment, table.get("augment", {}))
        except KeyError as error:
            raise RecipeError(f"{file} lacks {error}") from error
        except (AttributeError, TypeError) as error:
            raise RecipeError(
                f"{file}: a key has a value of another kind than it needs: paths are strings, [[stage]] and [augment] "
                f"are tables ({error})"
            ) from error
        recipe: Recipe = _checked(cls, table | {"stages": stages, "folder": base})
        return recipe


def place_of(base: Path, name: str) -> Path | str:
    """Where training starts: a path from ``base``, or a hub id, which has one slash and is no path that exists."""
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not (base / name).exists()
    return name if is_hub_id else base / Path(name).expanduser()


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in row.items() if isinstance(value, list)}


def _checked(kind: type, table: dict[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise RecipeError(f"{kind.__name__.lower()} has no key {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return kind(**table)
    except TypeError as error:
        raise RecipeError(f"{kind.__name__.lower()}: {error}") from error
