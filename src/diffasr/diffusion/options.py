"""How a transcript is drawn: what a user may ask for, checked."""

from dataclasses import dataclass
from typing import Literal

from diffasr.errors import OptionError

AHEAD, MOST_AHEAD = 8, 16
"""Tokens behind a change that are asked for by themselves, where nothing else is said; and the most that can be."""
_CHOICES = {
    "start": ("ctc", "sample", "noise"),
    "accept": ("auto", "joint", "prefix", "entropy", "threshold", "all"),
    "merge": ("rover", "mbr"),
}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a transcript is drawn."""

    steps: int = 8
    """How often a window's text is read and written anew, at most. See ``ahead`` for what else is asked in a step."""
    start: Literal["ctc", "sample", "noise"] = "ctc"
    """What the canvas starts from: CTC's likeliest text, a sample of what CTC may have heard, or random tokens."""
    seed_noise: float = 0.0
    """Share of the CTC canvas that is replaced by random tokens before the first step."""
    temperature: float = 0.0
    """Of the first step. 0 takes the most likely token, as ``joint`` always does."""
    final_temperature: float = 0.0
    """Of the last step; linear in between."""
    entropy_bound: float = 0.1
    """Nats that the accepted places may hold together, the least sure of them not counted."""
    accept: Literal["auto", "joint", "prefix", "entropy", "threshold", "all"] = "auto"
    """``joint``: every place is written anew by CTC and the denoiser together (``diffusion.joint``). ``prefix``: up to
    the first place that the model changed, that one included; what follows is renewed. ``entropy``: the surest places,
    within the bound. ``threshold``: every place whose token is at least so likely, and the likeliest. ``all``: every
    place, as in plain refinement. ``auto``: ``joint`` from CTC's text where CTC has short labels and temperatures and
    ``ctc_weight`` are 0, else ``prefix``."""
    joint_weight: float | None = None
    """With ``joint``: what CTC's log-probability counts for beside the denoiser's. None: as the checkpoint says of the
    language, else 0.43."""
    caution: float | None = None
    """With ``joint``: what CTC counts for beside the denoiser when a change is to be allowed: the more, the fewer. 0:
    the first change of a step is made in any case. None: as the checkpoint says of the language, else 0."""
    beam: int = 12
    """With ``start`` from CTC and a checkpoint that has a model of letters: texts that are kept while the best one is
    looked for, which the canvas then starts from; 0: CTC's best path."""
    letter_weight: float | None = None
    """What the model of letters counts for beside CTC: in the beam, and with ``joint`` in every step. None: as the
    checkpoint says of the language, else 0.3."""
    letter_bonus: float | None = None
    """Nats that CTC is given for each letter, in the same places: alone it leaves letters out. None: as the checkpoint
    says of the language, else 1.2."""
    threshold: float = 0.9
    """Probability from which ``threshold`` accepts a token."""
    position_bias: float = 0.0
    """With ``entropy`` and ``threshold``: nats by which the last place of a canvas counts as less sure than it is, the
    others in proportion to their distance from its start."""
    confidence: float = 0.1
    """With ``joint``: how likely a token must be to change a place behind the first change of a step."""
    ahead: int | None = None
    """With ``joint``, where a model runs without torch: so many tokens behind a change are asked for in the same step,
    one by one, until they are those that stand there, and of the texts that were read the best counts; 0: what follows
    is left to the next step. None: ``AHEAD`` where it can be done."""
    stop_entropy: float = 0.005
    """A row is done when its text did not change in a step and its mean entropy is under this, in nats; with
    ``prefix`` and ``joint``, when the step changed nothing and is not the first."""
    ctc_weight: float = 0.0
    """How much CTC's logits count beside the denoiser's, at the places that CTC put there. Not with ``joint``, which
    has a weight of its own."""
    guidance: float | None = None
    """How far each step's logits are pushed away from those of a reading without the sound, which then runs beside it:
    w in (1 + w) * with - w * without. None: with ``joint`` as the checkpoint says of the language, else 0."""
    self_conditioning: bool = False
    """Show each step what the step before believed."""
    votes: int = 1
    """Canvases of each window, merged into one text. All but the first start from other noise, or from a sample of what
    CTC may have heard."""
    merge: Literal["rover", "mbr"] = "rover"
    """How: ``rover`` elects each word, ``mbr`` takes the text that differs least from all (minimum Bayes risk)."""
    alternatives: int = 0
    """Texts of the votes that are handed out with each window, at most; not more than ``votes``."""
    seed: int = 0
    """Of the random numbers. Same seed, same transcript."""

    def __post_init__(self) -> None:
        self._check_counts()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(f"{name} can be {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("seed_noise", "threshold", "confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("temperature", "final_temperature", "entropy_bound", "ctc_weight", "stop_entropy",
                     "position_bias", "guidance", "joint_weight", "caution", "letter_weight",
                     "letter_bonus"):  # fmt: skip
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")

    def _check_counts(self) -> None:
        for name, least in (("steps", 1), ("votes", 1), ("beam", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.ahead is not None and not 0 <= self.ahead <= MOST_AHEAD:
            raise OptionError(f"ahead must be from 0 to {MOST_AHEAD}, got {self.ahead}")
        if not 0 <= self.alternatives <= self.votes:
            raise OptionError(
                f"alternatives are texts of the votes: ask for 0 to {self.votes} of them or for more votes, "
                f"got {self.alternatives}"
            )

    def temperature_at(self, step: int) -> float:
        """Linear from the first to the last of ``steps``; a single step uses the final one."""
        done = step / (self.steps - 1) if self.steps > 1 else 1.0
        return self.temperature + (self.final_temperature - self.temperature) * done
