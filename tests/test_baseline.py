"""Whisper beside us: transformers' decoding equals one written out here, faster-whisper is asked for the same work."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MELS, tiny_tokenizer, tiny_whisper
from torch import Tensor

from diffasr.audio import Samples, load_audio, log_mel, split_at_silence
from diffasr.errors import DownloadError, ModelError, OptionError
from diffasr.evaluate import baseline
from diffasr.evaluate.baseline import load_baseline
from diffasr.evaluate.score import character_errors
from diffasr.text import LANGUAGES, Tokenizer

REAL = Path("/work/scratch/work/whisper")  # what /work/shared/tools/whisper_base.py writes
SAMPLES = Path(__file__).parents[1] / "samples"
WINDOW = 2  # seconds that the tiny Whisper hears at once
LONGEST = 64 - 4  # its decoder's positions less the prompt


def noise(seconds: float, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Whisper in transformers' layout, without a generation_config.json."""
    place = tmp_path_factory.mktemp("whisper") / "tiny"
    whisper_alone().save_pretrained(place)
    (place / "generation_config.json").unlink(missing_ok=True)
    tiny_tokenizer().backend.save(str(place / "tokenizer.json"))
    return place


@cache
def whisper_alone() -> Any:
    return tiny_whisper(positions=WINDOW * 50)


def load_tiny(folder: Path, **options: int) -> Any:
    return load_baseline(f"whisper:{folder}", **{"threads": 1, **options})


@torch.inference_mode()
def read_on(samples: Samples, tokens: list[int]) -> Tensor:
    """Log-probabilities (n, V) that the tiny Whisper gives to what follows each of ``tokens``, features by us."""
    padded = np.pad(samples, (0, WINDOW * 16_000 - len(samples)))
    mel = torch.from_numpy(log_mel(padded, mels=MELS))[None]
    return whisper_alone()(input_features=mel, decoder_input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)


def greedy(samples: Samples, language: str, tokenizer: Tokenizer) -> list[int]:
    """The likeliest token again and again, every text so far read anew."""
    special = [i for i in range(30, 40) if i != tokenizer.end]
    prompt = tokenizer.prefix(language)
    tokens: list[int] = []
    while len(tokens) < LONGEST and (not tokens or tokens[-1] != tokenizer.end):
        scores = read_on(samples, prompt + tokens)[-1].clone()
        scores[special] = -torch.inf
        if not tokens:
            scores[[0, tokenizer.end]] = -torch.inf  # neither a blank nor nothing at all
        tokens.append(int(scores.argmax()))
    return tokens


@pytest.mark.parametrize(("seed", "language"), [(0, "en"), (1, "hi")])
def test_greedy_decoding_equals_one_written_out_by_hand(folder: Path, seed: int, language: str) -> None:
    sound, tokenizer = noise(1.3, seed), tiny_tokenizer()
    text, said = load_tiny(folder).transcribe(sound, language)
    assert said == language
    assert text == tokenizer.decode(greedy(sound, language, tokenizer))
    assert text, "it can't be empty"


def test_a_wider_beam_finds_a_likelier_text(folder: Path) -> None:
    sound, tokenizer = noise(1.3), tiny_tokenizer()
    texts = [load_tiny(folder, beam=beam).transcribe(sound, "en")[0] for beam in (1, 5)]
    assert texts[0] != texts[1]
    prompt = tokenizer.prefix("en")

    def score(text: str) -> float:
        tokens = tokenizer.encode(text)
        scores = read_on(sound, prompt + tokens)[len(prompt) - 1 : -1]  # (n, V)
        return float(scores.gather(1, torch.tensor(tokens)[:, None]).mean())

    assert score(texts[1]) > score(texts[0])


def test_an_unknown_language_is_the_likeliest_of_ours(folder: Path) -> None:
    sound, tokenizer = noise(1.0, seed=5), tiny_tokenizer()
    whisper = load_tiny(folder)
    text, found = whisper.transcribe(sound, None)
    first = read_on(sound, [tokenizer.start])[-1]
    assert found == max(LANGUAGES, key=lambda code: float(first[tokenizer.languages[code]]))
    assert (text, found) == whisper.transcribe(sound, found) == whisper.transcribe(sound, None), "and the same again"


def test_what_the_checkpoint_suppresses_is_not_written(folder: Path, tmp_path: Path) -> None:
    sound = noise(1.3)
    before, _ = load_tiny(folder).transcribe(sound, "en")
    letter = before.strip()[0]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    banned = tiny_tokenizer().backend.token_to_id(letter)
    (tmp_path / "generation_config.json").write_text(f'{{"suppress_tokens": [{banned}]}}', encoding="utf-8")
    after, _ = load_tiny(tmp_path).transcribe(sound, "en")
    assert after[0] != letter


@pytest.mark.parametrize(("language", "space"), [("en", " "), ("zh", "")])
def test_a_long_recording_is_heard_window_by_window(folder: Path, language: str, space: str) -> None:
    sound = noise(3.1)
    whisper = load_tiny(folder)
    windows = split_at_silence(sound, max_seconds=WINDOW)
    assert len(windows) == 2
    texts = [whisper.transcribe(sound[start:end], language)[0] for start, end in windows]
    assert whisper.transcribe(sound, language) == (space.join(texts), language)
    assert whisper.transcribe(sound[:0], language) == ("", language), "no sound, no text"


def test_threads_are_used_inside_and_given_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = load_tiny(folder, threads=3)
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(whisper, "_write", lambda *_: (str(seen.append(torch.get_num_threads())), "en"))
    whisper.transcribe(noise(1.0), "en")
    assert (seen, torch.get_num_threads()) == ([3], before)


def test_a_language_that_is_not_ours_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match="language 'nl' is not known"):
        load_tiny(folder).transcribe(noise(1.0), "nl")


class FakeWhisper:
    """What faster_whisper.WhisperModel is asked, and answers of its kind."""

    made: dict[str, Any]
    calls: list[dict[str, Any]]
    likely: tuple[tuple[str, float], ...] = (("nl", 0.6), ("de", 0.3), ("en", 0.1))

    def __init__(self, place: str, **options: Any) -> None:
        FakeWhisper.made, FakeWhisper.calls = {"place": place, **options}, []

    def transcribe(self, samples: Samples, **options: Any) -> tuple[Any, SimpleNamespace]:
        FakeWhisper.calls.append({"size": len(samples), **options})
        language = options["language"] or self.likely[0][0]
        texts = (SimpleNamespace(text=word) for word in (" one", " two"))
        return texts, SimpleNamespace(language=language, all_language_probs=list(self.likely))


@pytest.fixture
def ct2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A folder that looks like a CTranslate2 model, and a package that believes it."""
    place = tmp_path / "whisper" / "ct2"
    place.mkdir(parents=True)
    for name in ("config.json", "model.bin", "tokenizer.json"):
        (place / name).write_text("{}", encoding="utf-8")
    monkeypatch.setattr(baseline, "version", lambda package: f"{package} 1.0")

    def use(model: Any = FakeWhisper) -> str:
        monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=model))
        return str(place)

    return use


def test_faster_whisper_is_asked_for_one_plain_pass(ct2: Callable[..., str]) -> None:
    place = ct2()
    whisper = load_baseline(f"whisper:{place}", beam=5, threads=3)
    assert FakeWhisper.made == {"place": place, "device": "cpu", "compute_type": "int8", "cpu_threads": 3}
    assert list(whisper.versions) == ["faster-whisper", "ctranslate2"]
    assert whisper.transcribe(noise(1.0), "en") == ("one two", "en")
    assert FakeWhisper.calls == [
        {
            "size": 16_000, "language": "en", "beam_size": 5, "temperature": 0.0, "vad_filter": False,
            "without_timestamps": True, "condition_on_previous_text": False, "no_speech_threshold": None,
            "log_prob_threshold": None, "compression_ratio_threshold": None,
        }
    ]  # fmt: skip


def test_a_language_found_outside_ours_is_heard_again_in_the_likeliest_of_ours(ct2: Callable[..., str]) -> None:
    whisper = load_baseline(f"whisper:{ct2()}:ct2")
    assert whisper.transcribe(noise(1.0), None) == ("one two", "de")
    assert [call["language"] for call in FakeWhisper.calls] == [None, "de"]
    whisper.transcribe(noise(31.0), None)
    assert [call["language"] for call in FakeWhisper.calls[2:]] == [None, "de", "de"], "found in the first window"


def test_a_ct2_model_that_cannot_be_had_is_named(ct2: Callable[..., str], tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such file")

    place = ct2(broken)
    with pytest.raises(ModelError, match="is no CTranslate2 Whisper: no such file; convert or fetch it again"):
        load_baseline(f"whisper:{place}")
    with pytest.raises(DownloadError, match="'owner/name' could not be fetched from the hub: no such file"):
        load_baseline("whisper:owner/name:ct2")
    with pytest.raises(ModelError, match=r"has no config\.json, model\.bin, tokenizer\.json"):
        load_baseline(f"whisper:{tmp_path}:ct2")


def test_a_folder_that_is_no_whisper_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json, model\.safetensors, tokenizer\.json;"):
        load_baseline(f"whisper:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("parakeet:x", {}, "no baseline is called 'parakeet:x': give whisper:PATH_OR_ID"),
        ("whisper", {}, "no baseline is called 'whisper'"),
        ("whisper::ct2", {}, "no baseline is called 'whisper::ct2'"),
        ("whisper:x", {"beam": 0}, "beam must be at least 1, got 0"),
        ("whisper:x", {"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_a_call_that_means_nothing_is_refused(spec: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_baseline(spec, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(("package", "ending"), [("transformers", ""), ("faster_whisper", ":ct2")])
def test_a_missing_package_is_named(package: str, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=r"pip install 'diffasr\[evaluate\]'"):
        load_baseline(f"whisper:somewhere{ending}")


def test_the_versions_say_what_it_ran_with(folder: Path) -> None:
    whisper = load_tiny(folder, beam=2)
    assert (
        whisper.versions["torch"] == torch.__version__.split("+")[0] or whisper.versions["torch"] == torch.__version__
    )


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the Whisper-base that whisper_base.py builds")
@pytest.mark.parametrize("beam", [1, 5])
def test_both_runtimes_hear_our_samples(beam: int) -> None:
    runtimes = [load_baseline(f"whisper:{REAL / name}", beam=beam) for name in ("transformers", "ct2")]
    for code in ("en", "de", "fr", "es", "zh"):  # of the Hindi one, a base model makes nothing
        sound = load_audio(SAMPLES / f"{code}.opus")
        (one, _), (other, found) = runtimes[0].transcribe(sound, code), runtimes[1].transcribe(sound, None)
        edits, size = character_errors(one, other, code)
        assert found == code
        assert edits <= size / 4, (one, other)
