"""Laws of the text of the window before: who is shown it, and what it does to the denoiser."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, random_model, random_speech, wake
from test_transcribe import LOOP, Clockwork, Reader, noise

from diffasr import transcribe as module
from diffasr.cli import parse
from diffasr.cli.transcribe import _settings
from diffasr.decode import Decoded, Guide, decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.model.loaded import Model
from diffasr.transcribe import Transcriber
from diffasr.windows import ListenOptions, Window

WINDOWS = ListenOptions(vad=False, window_seconds=4.0, context=True)


class Contexts(Reader):
    """Stands in for ``decode``, and remembers what was said before."""

    def __init__(self, *answers: str) -> None:
        super().__init__(*answers)
        self.seen: list[str] = []

    def __call__(
        self, model: Any, speech: Any, languages: Any, options: Any, show: Any = None, guide: Any = None
    ) -> list[Decoded]:
        self.seen += [guide.context] * len(speech.lengths)
        return super().__call__(model, speech, languages, options, show, guide)


def shown(
    monkeypatch: pytest.MonkeyPatch, model: Model, listen: ListenOptions, *answers: str, files: int = 1
) -> list[str]:
    reader = Contexts(*answers)
    monkeypatch.setattr(module, "decode", reader)
    Transcriber(model).transcribe([noise(11.0, n) for n in range(files)], listen=listen)
    assert reader.rows == [1] * len(reader.rows) or not listen.context
    return reader.seen


def test_each_window_is_shown_the_one_before_of_its_recording(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    answers = [f"said {n}" for n in range(12)]
    seen = shown(monkeypatch, model, WINDOWS, *answers, files=2)
    assert (seen[0], seen.count("")) == ("", 2)
    assert len(seen) > 5
    assert all(text in ("", f"said {n - 1}") for n, text in enumerate(seen))
    assert set(shown(monkeypatch, model, ListenOptions(vad=False, window_seconds=4.0), *answers)) == {""}


def test_windows_that_overlap_are_sewn_together_all_the_same(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    second = module.SAMPLE_RATE_HZ
    windows = [
        Window(
            start=s * second, end=e * second, samples=noise(float(e - s)), speech=((s * second, e * second),),
            speech_probability=1.0, runs_on=e < 80,
        )
        for s, e in ((0, 30), (27, 56), (53, 80))
    ]  # fmt: skip
    monkeypatch.setattr(module, "decode", Clockwork({1500: 0, 1450: 27, 1350: 53}))
    monkeypatch.setattr(module.Windows, "__iter__", lambda self: iter(windows))
    result = Transcriber(model, batch_seconds=1.0).transcribe(noise(1.0), listen=ListenOptions(context=True))
    assert result.text == " ".join(f"w{n}" for n in range(80))


def test_a_loop_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    seen = shown(monkeypatch, model, WINDOWS, LOOP, "said 1", "said 2", "again")
    assert LOOP not in seen
    assert seen[:2] == ["", ""]


def test_what_was_said_before_changes_what_the_denoiser_says_of_all_rows() -> None:
    network = wake(random_model()).network
    cache = network.prefill(random_speech([30, 20]), torch.tensor([0, 1]))
    canvas, lengths = torch.arange(24).view(2, 12) % VOCABULARY, torch.tensor([12, 9])
    plain, told = (network.denoise(canvas, c, lengths=lengths) for c in (cache, network.remember(cache, [5, 6, 7])))
    assert plain.shape == told.shape
    assert all((plain[row] - told[row]).abs().max() > 1e-3 for row in range(2))
    both = torch.tensor([1, 1, 0])
    chosen = network.select(network.remember(cache, [5, 6, 7]), both)
    torch.testing.assert_close(
        network.denoise(canvas[both], chosen, lengths=lengths[both]), told[both], rtol=1e-4, atol=1e-5
    )


def test_of_a_long_text_the_end_is_shown() -> None:
    network = random_model().network
    cache = network.prefill(random_speech([30]), torch.tensor([0]))
    room = network.decoder.embed_positions.num_embeddings // 2 - 1
    told = network.remember(cache, list(range(30)) * 20).context
    assert told is not None
    assert told.tolist() == (list(range(30)) * 20)[-room:]
    assert cache.context is None


def test_decoding_is_guided_by_it() -> None:
    model = wake(random_model())
    speech, options = random_speech([80]), SamplingOptions(steps=4)
    plain, told = (decode(model, speech, None, options, None, Guide(context=text))[0] for text in ("", "the cat"))
    assert plain.avg_logprob != told.avg_logprob
    assert decode(model, speech, None, options)[0] == plain


def test_the_command_line_turns_it_on() -> None:
    call = ["transcribe", "x.wav"]
    assert _settings(parse([*call, "--context"])).listen == ListenOptions(context=True)
    assert _settings(parse([*call, "--condition_on_previous_text", "True"])).listen == ListenOptions(context=True)
    assert _settings(parse([*call, "--compression_ratio_threshold", "3"])).listen == ListenOptions(
        compression_ratio=3.0
    )
    assert np.all([not ListenOptions().context, _settings(parse(call)).listen is None])
