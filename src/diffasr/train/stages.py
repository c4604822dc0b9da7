"""A recipe: what is trained, in which order, on what. Read from TOML; unknown keys are refused."""

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from diffasr.errors import RecipeError
from diffasr.text import LANGUAGES

PARTS = ("projector", "conditioning", "embedding", "decoder", "lora")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with fixed settings. What is not in ``rates`` stays frozen."""

    name: str
    steps: int
    rates: dict[str, float]
    """Peak learning rate of each part that trains, by its name in PARTS."""
    warmup: int = 100
    """Steps from 0 to the peak; from there a cosine leads to ``final_rate``."""
    final_rate: float = 0.05
    """Share of the peak at the last step."""
    seconds: float = 120.0
    """Audio a batch, padding included."""
    diffusion: float = 1.0
    """Weight of the diffusion loss."""
    ar: float = 0.0
    """Weight of the autoregressive loss."""
    ctc: float = 0.0
    """Weight of the CTC loss."""
    ctc_extra: int = 3072
    """Labels that CTC tells apart from those of the batch, drawn anew each step."""
    ar_share: float = 0.25
    """Share of a batch's rows that the autoregressive loss sees."""
    full_share: float = 0.2
    """Share of the noisy canvases that are nothing but noise."""
    draft_share: float = 0.0
    """Share of the canvases that start from CTC's text instead of the noisy truth."""
    draft_noise: float = 0.3
    """Most noise on such a draft: its level is uniform from 0."""
    hint_drop: float = 0.1
    """Share of the rows that get no hints."""
    blur: float = 1.0
    """Most Gumbel noise on CTC's logits before they seed or hint."""
    conditioned_share: float = 0.5
    """Share of the steps with self-conditioning."""
    unroll_share: float = 0.0
    """Share of the rows of such a step whose canvas is the model's own draft (arXiv:2112.06749)."""
    mask: float = 0.0
    """Share of the rows with spans of frames blanked (SpecAugment over time)."""
    dropout: float = 0.0
    """Share of the numbers in the frames that are set to 0."""
    slack: int = 12
    """Most extra canvas places that a batch gets, at random, before the bucket is chosen."""
    ema: float = 0.999
    """Decay of the average weights, which the stage ends with."""
    clip: float = 1.0
    """Largest gradient norm."""
    weight_decay: float = 0.01
    lora_rank: int = 16
    """Of the adapters, when ``rates`` has lora."""

    def __post_init__(self) -> None:
        unknown = set(self.rates) - set(PARTS)
        if unknown or not self.rates:
            raise RecipeError(f"stage {self.name}: rates names {sorted(unknown) or 'nothing'}; parts are {PARTS}")
        if "lora" in self.rates and "decoder" in self.rates:
            raise RecipeError(f"stage {self.name}: train the decoder or its lora, not both")
        if self.steps < 1 or self.seconds <= 0 or self.warmup < 0 or self.slack < 0 or self.lora_rank < 1:
            raise RecipeError(
                f"stage {self.name}: steps, seconds and lora_rank must be above 0, warmup and slack 0 or more"
            )
        for name in ("ar_share", "full_share", "draft_share", "draft_noise", "hint_drop", "mask", "dropout",
                     "conditioned_share", "unroll_share", "final_rate", "ema"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"stage {self.name}: {name} is a share from 0 to 1, got {getattr(self, name)}")
        if self.clip <= 0 or min(*self.rates.values(), self.weight_decay, self.ctc_extra, self.blur) < 0:
            raise RecipeError(
                f"stage {self.name}: clip must be above 0, rates, weight_decay, ctc_extra and blur 0 or more"
            )
        if min(self.diffusion, self.ar, self.ctc) < 0 or self.diffusion + self.ar + self.ctc == 0:
            raise RecipeError(f"stage {self.name}: loss weights must be 0 or more, and one above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run. Paths are relative to the recipe's folder."""

    name: str
    init: Path
    """The checkpoint folder to start from."""
    features: tuple[Path, ...]
    """Feature stores to train on."""
    dev: Path
    """The feature store that is scored now and then, and never trained on."""
    stages: tuple[Stage, ...]
    shares: dict[str, float] | None = None
    """How much of an epoch each language gets; None: as it comes."""
    seed: int = 0
    autocast: bool = True
    """Matrix products in bfloat16; weights stay float32."""
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
        if min(self.evaluate_every, self.evaluate_count, self.save_every) < 1:
            raise RecipeError(f"{self.name}: evaluate_every, evaluate_count and save_every must be at least 1")
        unknown = set(self.shares or ()) - set(LANGUAGES)
        if unknown:
            raise RecipeError(f"{self.name}: shares names {sorted(unknown)}; languages are {', '.join(LANGUAGES)}")
        if self.shares is not None and (min(self.shares.values(), default=0) < 0 or not sum(self.shares.values())):
            raise RecipeError(f"{self.name}: shares must be 0 or more, and one above 0")

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
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{file}: {error}") from error
        base = file.parent
        try:
            stages = tuple(_checked(Stage, row) for row in table.pop("stage"))
            table["init"] = base / table["init"]
            table["dev"] = base / table["dev"]
            table["features"] = tuple(base / p for p in table["features"])
        except KeyError as error:
            raise RecipeError(f"{file} lacks {error}") from error
        recipe: Recipe = _checked(cls, table | {"stages": stages, "folder": base})
        return recipe


def _checked(kind: type, table: dict[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise RecipeError(f"{kind.__name__.lower()} has no key {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return kind(**table)
    except TypeError as error:
        raise RecipeError(f"{kind.__name__.lower()}: {error}") from error
