"""An evaluation decodes each recording once by each system, whatever happens, and as users would decode it."""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.comparisons import ctc_texts
from diffasr.decodable import decodable
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError
from diffasr.evaluate import run
from diffasr.evaluate.folder import ROWS, read_facts, read_rows
from diffasr.evaluate.run import batches, evaluate, fingerprint
from diffasr.evaluate.sets import Clip
from diffasr.evaluate.systems import EvaluationOptions, System, systems
from diffasr.model.checkpoint import save
from diffasr.model.hub import REFERENCE_FILE
from diffasr.model.loaded import Model
from diffasr.model.whisper import WhisperNetwork
from diffasr.transcribe import Transcriber, load
from diffasr.windows import ListenOptions

SAYS = [("one", "en", 1.0), ("two", "de", 0.8), ("three", "en", 0.6), ("four", "de", 1.2)]
KILLED = """
import os, signal, sys
from pathlib import Path
from diffasr.evaluate import folder, run, systems
append, written = folder.Folder.append, []
def until_three(self, rows):
    append(self, rows)
    written.append(1)
    if len(written) == 3:
        self._file.write(b'{"system": "ctc", "torn')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
folder.Folder.append = until_three
options = systems.EvaluationOptions(decoders=("ctc", "seeded"), steps=(2,), threads=1)
run.evaluate(sys.argv[1], [sys.argv[2]], options, Path(sys.argv[3]))
"""


def sound(seconds: float, seed: int = 0) -> Samples:
    noise = np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE_HZ))
    return (0.1 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    save(place, model)
    return place


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("speech")
    lines = []
    for number, (text, code, seconds) in enumerate(SAYS):
        soundfile.write(place / f"{number}.wav", sound(seconds, number), SAMPLE_RATE_HZ)
        lines.append({"audio_filepath": f"{number}.wav", "duration": seconds, "text": text, "lang": code})
    (place / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return place / "dev.jsonl"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the network's methods is called from here on."""
    counts: Counter[str] = Counter()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            counts[name] += 1
            return method(*args, **named)

        return call

    for name in ("hear", "prefill", "ctc_logits"):
        monkeypatch.setattr(WhisperNetwork, name, counted(name, getattr(WhisperNetwork, name)))
    return counts


def outcome(folder: Path, manifest: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    evaluate(folder, [str(manifest)], EvaluationOptions(**({"threads": 1} | options)), out)
    return read_rows(out)


def texts(rows: list[dict[str, Any]]) -> dict[Any, str]:
    return {(r["system"], r["seed"], r["reference"]): r["hypothesis"] for r in rows}


def test_a_row_for_each_recording_system_and_seed(folder: Path, manifest: Path, tmp_path: Path) -> None:
    decoders = ("ctc", "ctc_beam", "ar", "diffusion", "seeded")
    rows = outcome(folder, manifest, tmp_path, decoders=decoders, steps=(1, 2), seeds=2)
    counts = Counter((r["system"], r["seed"]) for r in rows)
    wanted = [("ctc", None), ("ctc_beam", None), ("ar", None), ("seeded-1", 0), ("seeded-2", 0)]
    wanted += [(f"diffusion-{steps}", seed) for steps in (1, 2) for seed in (0, 1)]
    assert counts == dict.fromkeys(wanted, 4)
    for row in rows:
        assert row["audio"].endswith(".wav")
        assert row["batch"] == 1
        assert row["found"] is None
        assert {"features", "encoder"} <= row["seconds"].keys()
        assert all(seconds >= 0 for seconds in row["seconds"].values())
        assert row["steps"] == (int(row["system"][-1]) if row["system"][-1].isdigit() else None)
        assert row["start"] == {"diffusion": "noise", "seeded": "ctc"}.get(row["decoder"])
    assert {r["reference"]: r["duration"] for r in rows} == {text: seconds for text, _, seconds in SAYS}
    told = texts(rows)
    assert all(told["ctc_beam", None, t] == told["ctc", None, t] for t, _, _ in SAYS), "without a model of letters"


def test_rows_of_diffusion_tell_how_the_text_came_about(folder: Path, manifest: Path, tmp_path: Path) -> None:
    rows = outcome(folder, manifest, tmp_path, decoders=("ctc", "seeded", "vote"), steps=(3,))
    for row in rows:
        if row["decoder"] == "ctc":
            assert (row["drafts"], row["words"], row["avg_logprob"]) == ([], [], None)
            continue
        assert len(row["drafts"]) <= 3
        assert row["avg_logprob"] <= 0
        assert "".join(w for w, _ in row["words"]) == row["hypothesis"].replace(" ", "")
        assert all(0 <= p <= 1 for _, p in row["words"])
        if row["decoder"] == "seeded" and row["drafts"]:
            assert row["drafts"][-1] == row["hypothesis"]
    assert any(len(r["drafts"]) > 1 for r in rows)


def test_the_texts_are_those_of_the_library(folder: Path, manifest: Path, tmp_path: Path) -> None:
    rows = outcome(folder, manifest, tmp_path, decoders=("ctc", "seeded"), steps=(2,))
    asr, found = load(folder), texts(rows)
    for number, (text, code, _) in enumerate(SAYS):
        audio = manifest.parent / f"{number}.wav"
        expected = asr.transcribe(audio, language=code, options=SamplingOptions(steps=2)).text
        assert found["seeded-2", 0, text] == expected
    heard = asr.hear([sound(SAYS[0][2], 0)])
    assert len(ctc_texts(asr.model, heard)) == 1
    assert any(found.values()), "a test in which nothing is written shows nothing"


def test_a_batch_writes_what_each_recording_alone_does(folder: Path, manifest: Path, tmp_path: Path) -> None:
    options = {"decoders": ("ctc", "ar", "diffusion"), "steps": (2,)}
    alone = outcome(folder, manifest, tmp_path / "1", **options)
    together = outcome(folder, manifest, tmp_path / "2", batch=2, **options)
    assert texts(alone) == texts(together)
    assert {r["batch"] for r in together} == {2}


def test_killed_half_way_it_decodes_nothing_twice(
    folder: Path, manifest: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    out, options = tmp_path / "out", {"decoders": ("ctc", "seeded"), "steps": (2,)}
    call = [sys.executable, "-c", KILLED, str(folder), str(manifest), str(out)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    before = (out / ROWS).read_bytes()
    assert before.count(b"\n") == 3
    rows = outcome(folder, manifest, out, **options)
    assert (out / ROWS).read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len(rows) == 8 == len({(r["system"], r["id"]) for r in rows})
    # left: one recording by the second system, two by both; and one call each to warm up
    assert calls == {"hear": 3 + 1, "ctc_logits": 2 + 1, "prefill": 3 + 1}
    calls.clear()
    assert outcome(folder, manifest, out, **options) == rows
    assert not calls, "all was there"
    assert len(read_facts(out)["sessions"]) == 2, "the third wrote nothing"
    whole = outcome(folder, manifest, tmp_path / "whole", **options)
    assert texts(whole) == texts(rows)


@pytest.mark.parametrize("other", [{"batch": 2}, {"find_language": True}, {"limit": 1}, {"threads": 2}])
def test_another_evaluation_is_refused(folder: Path, manifest: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    outcome(folder, manifest, tmp_path, decoders=("ctc",))
    with pytest.raises(OptionError, match="another evaluation"):
        outcome(folder, manifest, tmp_path, **({"decoders": ("ctc",)} | other))


def test_another_model_is_refused(folder: Path, manifest: Path, tmp_path: Path, model: Model) -> None:
    outcome(folder, manifest, tmp_path / "out", decoders=("ctc",), limit=1)
    save(tmp_path / "half", model, precision="float16")
    assert fingerprint(tmp_path / "half") != fingerprint(folder)
    with pytest.raises(OptionError, match="model is"):
        outcome(tmp_path / "half", manifest, tmp_path / "out", decoders=("ctc",), limit=1)


def test_the_references_file_has_a_fingerprint_too(tmp_path: Path) -> None:
    marks = []
    for content in (b"one", b"two"):
        (tmp_path / REFERENCE_FILE).write_bytes(content)
        marks.append(fingerprint(tmp_path))
    assert marks[0] != marks[1]


def test_the_language_found_is_noted(folder: Path, manifest: Path, tmp_path: Path) -> None:
    rows = outcome(folder, manifest, tmp_path, decoders=("ctc", "ar", "seeded"), steps=(1,), find_language=True)
    asr = load(folder)
    for row in rows:
        expected = None if row["decoder"] == "ctc" else asr.transcribe(row["audio"]).language
        assert row["found"] == expected


def test_a_long_recording_is_cut_into_windows(model: Model) -> None:
    clock = run.Clock(decodable(model.network))
    timed = Transcriber(dataclasses.replace(model, network=clock))
    long = sound(31)
    long[SAMPLE_RATE_HZ * 25 : SAMPLE_RATE_HZ * 26] = 0
    assert run._listen(timed, clock, [long])[0] is None
    for system in systems(EvaluationOptions(decoders=("ctc", "ar", "seeded"), steps=(1,), vad=False)):
        (wrote,) = run._write(timed, clock, system, [long], "fr")
        text, found = wrote.text, wrote.found
        seconds = clock.take().seconds
        assert {"encoder", "text"} <= seconds.keys()
        if system.decoder == "seeded":
            listen = ListenOptions(vad=False)
            result = Transcriber(model).transcribe(long, language="fr", options=system.options, listen=listen)
            assert (text, found) == (result.text, "fr")


def test_each_recording_is_loaded_once_for_the_model(
    folder: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: Counter[Any] = Counter()
    whole = run.load_audio
    monkeypatch.setattr(run, "load_audio", lambda source: loaded.update([source]) or whole(source))  # type: ignore[func-returns-value]
    outcome(folder, manifest, tmp_path, decoders=("ctc", "seeded"), steps=(1, 2))
    assert sorted(loaded.values()) == [1, 1, 1, 1]


def test_baselines_hear_the_same(folder: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int, str | None]] = []

    def fake(spec: str, *, beam: int = 1, threads: int = 2) -> Any:
        def transcribe(samples: Samples, language: str | None) -> tuple[str, str]:
            heard.append((beam, len(samples), language))
            return f"{spec} {beam} {threads}", "fr"

        return SimpleNamespace(name="w", versions={"w": "1"}, transcribe=transcribe)

    monkeypatch.setattr(run, "load_baseline", fake)
    options = {"decoders": (), "baselines": ("whisper:/a/b/c",), "beams": (1, 5), "limit": 1}
    rows = outcome(folder, manifest, tmp_path, **options)
    assert Counter(r["system"] for r in rows) == {"whisper:b/c beam 1": 2, "whisper:b/c beam 5": 2}
    assert {r["hypothesis"] for r in rows} == {"whisper:/a/b/c 1 1", "whisper:/a/b/c 5 1"}
    assert {r["decoder"] for r in rows} == {"whisper"}
    lengths = {int(seconds * SAMPLE_RATE_HZ): code for _, code, seconds in SAYS[:2]}
    assert len(heard) == 6, "two beams, two recordings, and once to warm up"
    assert all(lengths[size] == code for _, size, code in heard)
    assert read_facts(tmp_path)["sessions"][0]["versions"]["w"] == "1"
    assert set(read_facts(tmp_path)["sessions"][0]["peak_mib"]) == {r["system"] for r in rows}
    heard.clear()
    assert outcome(folder, manifest, tmp_path, **options) == rows
    assert heard == []
    told = outcome(folder, manifest, tmp_path / "found", **(options | {"find_language": True}))
    assert {r["found"] for r in told} == {"fr"}
    assert {language for _, _, language in heard} == {None}


def test_threads_are_set_while_it_runs_and_put_back(
    folder: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = torch.get_num_threads(), []
    whole = run.load_audio
    monkeypatch.setattr(run, "load_audio", lambda s: during.append(torch.get_num_threads()) or whole(s))  # type: ignore[func-returns-value]
    outcome(folder, manifest, tmp_path, decoders=("ctc",), limit=1, threads=before + 1)
    assert during == [before + 1] * 2, "a recording a language"
    assert torch.get_num_threads() == before


def test_batches_hold_one_language_and_like_lengths() -> None:
    clips = [
        Clip(id=str(n), audio="", duration=seconds, text="", language=code)
        for n, (seconds, code) in enumerate([(3, "de"), (1, "en"), (2, "en"), (5, "de"), (4, "en")])
    ]
    assert [[c.id for c in group] for group in batches(clips, 2)] == [["1", "2"], ["4"], ["0", "3"]]


def test_systems_are_named_by_what_sets_them_apart() -> None:
    options = EvaluationOptions(decoders=("ctc", "diffusion", "seeded"), steps=(4, 2, 4), seeds=2)
    found = [(s.name, s.seed) for s in systems(options)]
    assert found == [("ctc", None), ("diffusion-2", 0), ("diffusion-2", 1), ("diffusion-4", 0), ("diffusion-4", 1),
                     ("seeded-2", 0), ("seeded-4", 0)]  # fmt: skip
    assert System(name="a", decoder="ctc").definition() == {"decoder": "ctc", "options": {}, "baseline": "", "beam": 1}
    beamed, together = systems(EvaluationOptions(decoders=("ctc_beam", "ar_ctc")))
    assert beamed.together == together.together == SamplingOptions()
    assert beamed.definition()["together"] == dataclasses.asdict(SamplingOptions())
    with pytest.raises(OptionError, match="both be called"):
        systems(EvaluationOptions(baselines=("whisper:/a/b/c", "whisper:/x/b/c")))


def test_each_combination_of_what_varies_is_a_system() -> None:
    vary = (("start", ("ctc", "sample")), ("votes", ("1", "3")))
    options = EvaluationOptions(decoders=("ctc", "seeded"), steps=(1, 2), seeds=2, vary=vary)
    found = systems(options)[1:]
    assert [s.name for s in found if s.seed == 0] == [
        f"seeded-{steps} start={start} votes={votes}"
        for steps, start, votes in itertools.product((1, 2), ("ctc", "sample"), (1, 3))
    ]
    drawn = {s.name: s.options for s in found if s.options and s.seed == 1}
    assert "seeded-1 start=ctc votes=1" not in drawn, "nothing there is drawn at random"
    assert drawn["seeded-2 start=sample votes=3"] == SamplingOptions(steps=2, start="sample", votes=3, seed=1)
    kinds = (("ctc_weight", ("0.5",)), ("self_conditioning", ("true",)), ("accept", ("threshold",)))
    kinds += (("caution", ("0.8",)), ("ahead", ("2",)))
    (mixed,) = systems(EvaluationOptions(decoders=("vote",), steps=(1,), vary=kinds))
    assert mixed.options == SamplingOptions(
        steps=1, votes=3, ctc_weight=0.5, self_conditioning=True, accept="threshold", caution=0.8, ahead=2, seed=0
    )


@pytest.mark.parametrize(
    ("vary", "match"),
    [
        (("steps", ("1",)), "vary takes values of start"),
        (("votes", ()), "'votes' with 0"),
        (("votes", ("x",)), "votes can't be 'x'"),
        (("caution", ("none",)), "caution can't be 'none'"),
        (("ahead", ("0.5",)), "ahead can't be '0.5': its values are like 0"),
        (("ahead", ("-1",)), "ahead must be from 0 to 16"),
        (("self_conditioning", ("maybe",)), "self_conditioning can't be"),
        (("start", ("silence",)), "start can be"),
    ],
)
def test_what_can_not_vary_is_told_at_once(vary: tuple[str, tuple[str, ...]], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        systems(EvaluationOptions(decoders=("seeded",), vary=(vary,)))


def test_votes_reach_the_sampler(folder: Path, manifest: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(decoders=("vote",), steps=(1,), votes=5, seeds=2)
    assert [(s.name, s.seed) for s in systems(options)] == [("vote-1", 0), ("vote-1", 1)]
    assert systems(options)[0].definition()["options"]["votes"] == 5
    rows = outcome(folder, manifest, tmp_path, decoders=("vote",), steps=(1,), votes=5, limit=1)
    asr = load(folder)
    for row in rows:
        told = asr.transcribe(row["audio"], language=row["language"], options=SamplingOptions(steps=1, votes=5))
        assert row["hypothesis"] == told.text
    with pytest.raises(OptionError, match="vote-1 is"):
        outcome(folder, manifest, tmp_path, decoders=("vote",), steps=(1,), votes=2, limit=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"decoders": ("x",)}, {"decoders": ()}, {"steps": ()}, {"steps": (0,)}, {"beams": (0,)}, {"seeds": 0},
        {"batch": 0}, {"threads": 0}, {"limit": 0}, {"votes": 1}, {"normaliser": "x"},
    ],
)  # fmt: skip
def test_a_bad_option_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="there is nothing" if wrong == {"decoders": ()} else next(iter(wrong))):
        EvaluationOptions(**wrong)


def test_two_sets_of_one_name_are_refused(folder: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one name"):
        evaluate(folder, [str(manifest)] * 2, EvaluationOptions(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
