"""What diffusion is compared with: the same checkpoint's CTC alone, and its decoder token by token."""

import torch
from torch import Tensor

from diffasr.ballots import ballot_paths, told
from diffasr.diffusion import ctc
from diffasr.diffusion.fluency import Fluency
from diffasr.diffusion.joint import Joint, opinions
from diffasr.diffusion.lattice import Sound
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.errors import OptionError
from diffasr.model.checkpoint import Model
from diffasr.model.network import Cache, Speech
from diffasr.text import LANGUAGES


def ctc_texts(model: Model, speech: Speech) -> list[str]:
    """CTC's best path of each row as text, without any denoising."""
    tokenizer = model.tokenizer
    logits = model.network.ctc_logits(speech)
    paths = ctc.best_paths(logits, model.network.slots(speech), blank=tokenizer.blank)
    return [tokenizer.decode(tokenizer.alphabet[label] for label in path.tokens) for path in paths]


@torch.inference_mode()
def beam_texts(model: Model, speech: Speech, languages: Tensor | None, options: SamplingOptions) -> list[str]:
    """What joint writing starts from, without any denoising: of a beam where the checkpoint has a model of letters."""
    cache = model.network.prefill(speech, None if languages is None else languages.to(speech.frames.device))
    return [model.tokenizer.decode(path.tokens) for path in ballot_paths(model, cache, options)]


@torch.inference_mode()
def ar_texts(
    model: Model,
    speech: Speech,
    languages: Tensor | None,
    *,
    most: int = 160,
    together: SamplingOptions | None = None,
) -> list[str]:
    """Each row written token by token with the causal mask on, greedily, at most ``most`` tokens: the comparison.

    Keys and values of the text so far are kept. together: how CTC and the model of letters have a say, as in joint
    writing; None: they have none. Raises OptionError where they are asked and CTC has no short labels.
    """
    device = speech.frames.device
    cache = model.network.prefill(speech, None if languages is None else languages.to(device))
    tokens = torch.empty(len(cache.slots), 0, dtype=torch.long, device=device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=device)
    read, new = model.network.ar_reader(cache), tokens
    joint = None if together is None else joint_rows(model, cache, together)
    while tokens.shape[1] < most and not bool(ended.all()):
        logits = read(new)  # (B, V)
        best = logits.argmax(-1) if joint is None else _together(joint, tokens, logits, ended)  # (B,)
        best = torch.where(ended, model.tokenizer.end, best)
        new = best[:, None]
        tokens = torch.cat((tokens, new), dim=1)
        ended |= best == model.tokenizer.end
    return [model.tokenizer.decode(row) for row in tokens.tolist()]


def joint_rows(model: Model, cache: Cache, options: SamplingOptions) -> list[Joint]:
    """For each row of ``cache`` what CTC and the denoiser write together. Raises OptionError without short labels."""
    tokenizer, codes = model.tokenizer, list(LANGUAGES)
    spelling = tokenizer.spelling
    if spelling is None:
        raise OptionError(f"CTC of {model.config.name} has no short labels to spell with: it can't write together")
    joint = []
    for row, slots in enumerate(cache.slots.tolist()):
        code, fluency = codes[int(cache.languages[row])], None
        if model.letters is not None:
            weight, bonus = (told(model, options, name, code) for name in ("letter_weight", "letter_bonus"))
            fluency = Fluency(model.letters.language(code), spelling, weight=weight, bonus=bonus)
        joint.append(
            Joint(
                Sound(cache.ctc[row, :slots].float().log_softmax(-1).cpu().numpy(), blank=tokenizer.blank),
                spelling,
                end=tokenizer.end,
                weight=told(model, options, "joint_weight", code),
                confidence=options.confidence,
                caution=told(model, options, "caution", code),
                fluency=fluency,
            )
        )
    return joint


def _together(joint: list[Joint], tokens: Tensor, logits: Tensor, ended: Tensor) -> Tensor:
    """The next token (B,) of each row behind ``tokens`` (B, U), from logits (B, V)."""
    best = logits.argmax(-1)
    for row in (~ended).nonzero()[:, 0].tolist():
        (said,) = opinions(logits[row : row + 1], [int(best[row])])
        best[row] = joint[row].next(tokens[row].tolist(), said)
    return best
