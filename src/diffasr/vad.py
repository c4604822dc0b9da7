"""Samples in, the probability of speech in each 32 ms of them out: Silero's detector, block by block.

The network is the ONNX file for sequences inside the package silero-vad (MIT). That package itself is not imported: it
imports torch, and limits it to one thread for the whole process. A test compares the two.
Source: https://github.com/snakers4/silero-vad, src/silero_vad/sequence_vad.py.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from diffasr.audio import Samples
from diffasr.errors import OptionError

FRAME = 512
"""Samples that get one probability."""
_BEFORE = 64  # samples of the frame before


@cache
def _network() -> onnxruntime.InferenceSession:
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        raise OptionError("finding speech needs the package silero-vad: pip install silero-vad, or ask for no vad")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # too small to share
    file = Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class SpeechDetector:
    """Listens to one recording; what it said so far does not depend on how the samples are cut into blocks."""

    def __init__(self) -> None:
        self._network = _network()
        self._state: list[NDArray[np.float32]] = [np.zeros((1, 1, 128), np.float32)] * 2
        self._rest: Samples = np.zeros(0, np.float32)
        self._before: Samples = np.zeros(_BEFORE, np.float32)

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
        feeds = dict(zip("hc", self._state, strict=True)) | {"input": np.ascontiguousarray(frames)}
        found, *self._state = self._network.run(None, feeds)
        probabilities: Samples = found
        return probabilities

    def finish(self) -> Samples:
        """The probability of the last frame, filled up with silence; nothing where the last one was whole."""
        if not len(self._rest):
            return np.zeros(0, np.float32)
        return self.hear(np.zeros(FRAME - len(self._rest), np.float32))
