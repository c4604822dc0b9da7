"""What diffusion is compared with: the same checkpoint's CTC alone, and its decoder token by token."""

import torch
from torch import Tensor

from diffasr.diffusion import ctc
from diffasr.diffusion.joint import Joint, opinions
from diffasr.diffusion.lattice import Sound
from diffasr.errors import OptionError
from diffasr.model.checkpoint import Model
from diffasr.model.network import Cache, Speech


def ctc_texts(model: Model, speech: Speech) -> list[str]:
    """CTC's best path of each row as text, without any denoising."""
    tokenizer = model.tokenizer
    logits = model.network.ctc_logits(speech)
    paths = ctc.best_paths(logits, model.network.slots(speech), blank=tokenizer.blank)
    return [tokenizer.decode(tokenizer.alphabet[label] for label in path.tokens) for path in paths]


@torch.inference_mode()
def ar_texts(
    model: Model, speech: Speech, languages: Tensor | None, *, most: int = 160, joint_weight: float = 0.0
) -> list[str]:
    """Each row written token by token with the causal mask on, greedily, at most ``most`` tokens: the comparison.

    Keys and values of the text so far are kept. joint_weight: what CTC counts for beside the decoder, as in
    ``SamplingOptions``. Raises OptionError where it is above 0 and CTC has no short labels.
    """
    device = speech.frames.device
    cache = model.network.prefill(speech, None if languages is None else languages.to(device))
    tokens = torch.empty(len(cache.slots), 0, dtype=torch.long, device=device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=device)
    read, new = model.network.ar_reader(cache), tokens
    joint = joint_rows(model, cache, weight=joint_weight) if joint_weight > 0 else None
    while tokens.shape[1] < most and not bool(ended.all()):
        logits = read(new)  # (B, V)
        best = logits.argmax(-1) if joint is None else _together(joint, tokens, logits, ended)  # (B,)
        best = torch.where(ended, model.tokenizer.end, best)
        new = best[:, None]
        tokens = torch.cat((tokens, new), dim=1)
        ended |= best == model.tokenizer.end
    return [model.tokenizer.decode(row) for row in tokens.tolist()]


def joint_rows(model: Model, cache: Cache, *, weight: float, confidence: float = 0.0) -> list[Joint]:
    """For each row of ``cache`` what CTC and the denoiser write together. Raises OptionError without short labels."""
    tokenizer = model.tokenizer
    if tokenizer.spelling is None:
        raise OptionError(f"CTC of {model.config.name} has no short labels to spell with: it can't write together")
    joint = []
    for row, slots in enumerate(cache.slots.tolist()):
        sound = Sound(cache.ctc[row, :slots].float().log_softmax(-1).cpu().numpy(), blank=tokenizer.blank)
        joint.append(Joint(sound, tokenizer.spelling, end=tokenizer.end, weight=weight, confidence=confidence))
    return joint


def _together(joint: list[Joint], tokens: Tensor, logits: Tensor, ended: Tensor) -> Tensor:
    """The next token (B,) of each row behind ``tokens`` (B, U), from logits (B, V)."""
    best = logits.argmax(-1)
    for row in (~ended).nonzero()[:, 0].tolist():
        (said,) = opinions(logits[row : row + 1], [int(best[row])])
        best[row] = joint[row].next(tokens[row].tolist(), said)
    return best
