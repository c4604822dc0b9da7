"""Samples in, the probability of speech in each 32 ms of them out: Silero's detector, block by block.

The weights are those inside the package silero-vad (MIT). The network is written here again, because that package
limits torch to one thread for the whole process when it is imported, and calls its network once a frame; only the LSTM
needs the frames one after another, so here the rest runs over a whole block. A test compares the two.
Source: https://github.com/snakers4/silero-vad, file src/silero_vad/tinygrad_model.py of release 6.2.
"""

import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.audio import Samples
from diffasr.errors import OptionError

FRAME = 512
"""Samples that get one probability."""
_BEFORE, _AFTER = 64, 64  # samples of the frame before, and mirrored ones behind
_PIECE = 32
"""Frames that the LSTM takes together; more of them are filled up to a multiple of it before. For each new number of
frames kernels are written, which stay in memory."""

_NAMES = {  # ours, and those of the weights for 16 kHz
    "spectrum.weight": "_model.stft.forward_basis_buffer",
    "first": "_model.encoder.0.reparam_conv",
    "second": "_model.encoder.1.reparam_conv",
    "third": "_model.encoder.2.reparam_conv",
    "fourth": "_model.encoder.3.reparam_conv",
    "lstm.weight_ih_l0": "_model.decoder.rnn.weight_ih",
    "lstm.weight_hh_l0": "_model.decoder.rnn.weight_hh",
    "lstm.bias_ih_l0": "_model.decoder.rnn.bias_ih",
    "lstm.bias_hh_l0": "_model.decoder.rnn.bias_hh",
    "last": "_model.decoder.decoder.2",
}

_State = tuple[Tensor, Tensor]


class SileroNetwork(nn.Module):
    """Spectrum, four convolutions, an LSTM over the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.first = nn.Conv1d(129, 128, 3, padding=1)
        self.second = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.third = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.fourth = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.last = nn.Conv1d(128, 1, 1)

    def forward(self, frames: Tensor, state: _State) -> tuple[Tensor, _State]:
        """Probabilities (n,) of frames (n, _BEFORE + FRAME) that follow one another, and the state behind them."""
        count = len(frames)
        if count > _PIECE:
            frames = F.pad(frames, (0, 0, 0, -count % _PIECE))
        x = F.pad(frames[:, None], (0, _AFTER), mode="reflect")
        x = self.spectrum(x)  # (n, 258, 4)
        x = (x[:, :129].square() + x[:, 129:].square()).sqrt()  # (n, 129, 4)
        for layer in (self.first, self.second, self.third, self.fourth):
            x = layer(x).relu()
        told = []
        for piece in x[:count, :, 0].split(_PIECE):
            heard, state = self.lstm(piece, state)  # (_PIECE, 128)
            told.append(self.last(heard.relu().T)[0])
        return torch.cat(told).sigmoid(), state


@cache
def _network() -> SileroNetwork:
    package = find_spec("silero_vad")  # not imported: see above
    if package is None or package.origin is None:
        raise OptionError("finding speech needs the package silero-vad: pip install silero-vad, or ask for no vad")
    with warnings.catch_warnings(
        action="ignore", category=DeprecationWarning
    ):  # TorchScript: only read here, never run
        weights = torch.jit.load(
            Path(package.origin).parent / "data" / "silero_vad.jit", map_location="cpu"
        ).state_dict()
    named: dict[str, Tensor] = {}
    for ours, theirs in _NAMES.items():
        named |= {name.replace(theirs, ours): value for name, value in weights.items() if name.startswith(theirs)}
    network = SileroNetwork()
    network.load_state_dict(named)
    return network.eval().requires_grad_(False)


class SpeechDetector:
    """Listens to one recording; what it said so far does not depend on how the samples are cut into blocks."""

    def __init__(self) -> None:
        self._network = _network()
        zeros = torch.zeros(1, 128)
        self._state: _State = (zeros, zeros)
        self._rest: Samples = np.zeros(0, np.float32)
        self._before: Samples = np.zeros(_BEFORE, np.float32)

    @torch.inference_mode()
    def hear(self, samples: Samples) -> Samples:
        """Probabilities (n,) of the whole frames that (N,) further samples complete."""
        waiting = np.concatenate((self._rest, samples))
        count = len(waiting) // FRAME
        self._rest = waiting[count * FRAME :].copy()
        if not count:
            return np.zeros(0, np.float32)
        whole = np.concatenate((self._before, waiting[: count * FRAME]))
        self._before = whole[len(whole) - _BEFORE :].copy()
        frames = np.lib.stride_tricks.sliding_window_view(whole, _BEFORE + FRAME)[::FRAME]  # (n, 576)
        probabilities, self._state = self._network(torch.from_numpy(frames.copy()), self._state)
        found: Samples = probabilities.numpy()
        return found

    def finish(self) -> Samples:
        """The probability of the last frame, filled up with silence; nothing where the last one was whole."""
        if not len(self._rest):
            return np.zeros(0, np.float32)
        return self.hear(np.zeros(FRAME - len(self._rest), np.float32))
