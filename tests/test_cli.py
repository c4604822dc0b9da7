"""The command line as its users meet it: words in, text and exit codes out."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from test_report import WORDS, row

from diffasr import cli
from diffasr.audio import SAMPLE_RATE_HZ, load_audio
from diffasr.batch.run import BatchOptions
from diffasr.batch.work import Settings
from diffasr.cli import transcribe
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError
from diffasr.formats import FORMATS, LineShape
from diffasr.model.checkpoint import save
from diffasr.model.loaded import Model

EMPTY: dict[str, Any] = {
    "normaliser": "basic", "about": {}, "sets": [], "systems": {}, "scores": [], "means": [], "languages": [],
    "comparisons": [], "training": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    save(place, model)
    return place


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A second from the middle of a sentence: in noise alone there is nothing to decode."""
    speech = load_audio(Path(__file__).parents[1] / "samples" / "de.opus")
    soundfile.write(tmp_path / "clip.wav", speech[SAMPLE_RATE_HZ : 2 * SAMPLE_RATE_HZ], SAMPLE_RATE_HZ)
    return tmp_path / "clip.wav"


def test_text_goes_to_stdout(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(clip), "--model", str(folder)]) == 0
    out = capsys.readouterr()
    assert out.out.endswith("\n")
    assert out.err == ""


def test_json_says_what_was_asked(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["transcribe", str(clip), "--model", str(folder), "--format", "json", "--language", "fr", "--steps", "3"]
    assert cli.main(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["language"] == "fr"
    assert said["language_probability"] is None
    assert said["duration"] == 1.0
    assert all(segment["steps"] <= 3 for segment in said["segments"])


def test_files_are_written_where_asked(folder: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert cli.main(["transcribe", str(clip), "--model", str(folder), "--output-dir", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [".diffasr.jsonl", "clip.wav.txt"]


def test_a_place_that_cannot_be_made_is_named(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(clip), "--output-dir", str(clip / "out")]) == 2
    assert str(clip / "out") in capsys.readouterr().err


def test_two_files_of_one_name_are_refused_before_any_work(folder: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    twin = shutil.copy(clip, tmp_path / "b" / "clip.wav")
    out = tmp_path / "out"
    call = ["transcribe", str(clip), str(twin), "--model", str(folder), "--output-dir", str(out)]
    assert cli.main(call) == 2
    assert not out.exists()


def test_one_bad_file_does_not_stop_the_others(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    call = ["transcribe", str(tmp_path / "bad.wav"), str(tmp_path / "none.wav"), str(clip), "--model", str(folder)]
    assert cli.main(call) == 1
    out = capsys.readouterr()
    assert "bad.wav" in out.err
    assert "none.wav" in out.err
    assert "2 of 3 files failed" in out.err
    assert str(clip) in out.out


def test_several_formats_need_a_folder(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["transcribe", str(clip), "--model", str(folder), "--format", "txt,srt,txt"]
    for place in ([], ["--output-dir", "-"]):
        assert cli.main([*call, *place]) == 2
        assert "--output-dir" in capsys.readouterr().err
    assert cli.main([*call, "--output-dir", str(tmp_path / "out"), "--quiet"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.*")) == [".diffasr.jsonl", "clip.wav.srt", "clip.wav.txt"]
    assert capsys.readouterr() == ("", "")
    assert cli.main([*call, "--output-dir", str(tmp_path / "out")]) == 0
    assert "1 of 1 files were done already" in capsys.readouterr().err


def test_bytes_come_in_and_text_goes_out(
    folder: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--model", str(folder), "--format", "json", "--output-dir", "-"]
    assert cli.main(["transcribe", str(clip), *call]) == 0
    named = capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(clip.read_bytes())))
    assert cli.main(["transcribe", "-", *call]) == 0
    assert capsys.readouterr() == named


def test_the_sound_of_a_video_is_taken(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = (3000 * np.random.default_rng(0).standard_normal((1, SAMPLE_RATE_HZ))).astype(np.int16)
    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        pictures, sound = film.add_stream("mpeg4", rate=5), film.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        pictures.width = pictures.height = 32
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            film.mux(pictures.encode(picture))
        frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        film.mux([*sound.encode(frame), *sound.encode(None), *pictures.encode(None)])
    assert cli.main(["transcribe", str(tmp_path), "--model", str(folder), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["duration"] == pytest.approx(1, abs=0.15)


OURS = [
    "--output-dir", "o", "--format", "srt,json", "--max-line-width", "40", "--max-line-count", "1",
    "--max-words-per-line", "7", "--highlight-words", "--language", "de", "--threads", "3",
]  # fmt: skip


def test_flags_of_whisper_that_mean_the_same_are_understood() -> None:
    theirs = [word.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else word for word in OURS]
    theirs[theirs.index("--format")] = "--output_format"
    theirs.insert(theirs.index("--highlight_words") + 1, "True")
    theirs += ["--word_timestamps", "True", "--task", "transcribe", "--device", "cuda"]
    mine = cli.parse(["transcribe", "x.wav", *OURS, "--device", "cuda"])
    whispers = cli.parse(["transcribe", "x.wav", *theirs])
    assert transcribe._settings(whispers) == transcribe._settings(mine)
    assert transcribe._options(whispers) == transcribe._options(mine)
    short = cli.parse(["transcribe", "x.wav", "-o", "o", "-f", "all", "--highlight_words", "False"])
    assert (short.output_dir, short.format, short.highlight_words) == ("o", FORMATS, False)


def test_every_option_of_transcribe_arrives() -> None:
    words = ["--model", "m", "--steps", "3", "--start", "noise", "--seed", "5", "--jobs", "2", "--redo-all"]
    words += ["--votes", "4", "--alternatives", "2", "--ctc-weight", "0.3", "--temperature", "0.7"]
    words += ["--precision", "int4", "--gpu-memory", "24"]
    args = cli.parse(["transcribe", "x.wav", *OURS, *words, "--device", "cuda"])
    assert transcribe._settings(args) == Settings(
        model="m", device="cuda", language="de",
        sampling=SamplingOptions(
            steps=3, start="noise", seed=5, votes=4, alternatives=2, ctc_weight=0.3, temperature=0.7
        ),
        precision="int4", gpu_memory=24.0, formats=("srt", "json"),
        shape=LineShape(max_line_width=40, max_line_count=1, max_words_per_line=7, highlight_words=True),
    )  # fmt: skip
    assert transcribe._options(args) == BatchOptions(folder=Path("o"), jobs=2, threads=3, redo_all=True)


def test_alternatives_bring_the_votes_that_they_need() -> None:
    sampling = transcribe._settings(cli.parse(["transcribe", "x.wav", "--alternatives", "5"])).sampling
    assert (sampling.votes, sampling.alternatives) == (5, 5)
    assert transcribe._settings(cli.parse(["transcribe", "x.wav"])).sampling == SamplingOptions()
    with pytest.raises(OptionError, match="for more votes"):
        transcribe._settings(cli.parse(["transcribe", "x.wav", "--alternatives", "5", "--votes", "2"]))


@pytest.mark.parametrize(
    ("said", "code"), [("German", "de"), ("mandarin", "zh"), ("Chinese", "zh"), ("FR", "fr"), ("hindi", "hi")]
)
def test_languages_have_english_names(said: str, code: str) -> None:
    assert cli.parse(["transcribe", "x.wav", "--language", said]).language == code


@pytest.mark.parametrize(
    ("out", "words", "is_shown"), [(True, [], True), (True, ["--quiet"], False), (False, [], False)]
)
def test_progress_is_for_terminals(
    out: bool,
    words: list[str],
    is_shown: bool,
    folder: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", Terminal())
    twin = shutil.copy(clip, tmp_path / "twin.wav")
    place = ["--output-dir", str(tmp_path / "out")] if out else []
    assert cli.main(["transcribe", str(clip), str(twin), "--model", str(folder), *place, *words]) == 0
    assert ("2 of 2" in screen.getvalue()) == is_shown


CUT_OFF = """
import socket, sys
def refuse(*words, **more):
    print("NETWORK", words, file=sys.stderr)
    raise OSError("this machine has no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from diffasr.cli import main
words, models = ["transcribe", sys.argv[1], "--offline", "--model"], (sys.argv[2], "mini", "some/where")
codes = [main([*words, model]) for model in models]
print("codes", codes)
"""


def test_offline_means_no_network(folder: Path, clip: Path) -> None:
    call = [sys.executable, "-c", CUT_OFF, str(clip), str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "codes [0, 0, 1]", done.stderr
    assert "NETWORK" not in done.stderr
    assert "some/where" in done.stderr and "offline" in done.stderr.lower()


def test_watching_shows_every_step(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["transcribe", str(clip), "--model", str(folder), "--watch", "--steps", "2", "--start", "noise"]
    assert cli.main(call) == 0
    assert "step 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "code", "word"),
    [
        (["transcribe", "x.wav", "--model", "nowhere"], 1, "nowhere"),
        (["transcribe", "x.wav", "--steps", "0"], 2, "steps"),
        (["transcribe", "x.wav", "--jobs", "0"], 2, "jobs"),
        (["transcribe", "x.wav", "--max-line-width", "0"], 2, "max_line_width"),
        (["transcribe", "no-such/**"], 2, "no-such"),
        (["train", "no-such-recipe"], 2, "no-such-recipe"),
        (["score", "no-such-rows.jsonl"], 2, "no-such-rows.jsonl"),
        (["evaluate", "no-such-manifest.jsonl"], 1, "no-such-manifest.jsonl"),
        (["evaluate", "x.jsonl", "--decoders", "ctc,sing"], 2, "sing"),
        (["evaluate", "x.jsonl", "--normaliser", "odd"], 2, "odd"),
        (["evaluate", "x.jsonl", "--baseline", "wisper:x"], 2, "wisper:x"),
        (["evaluate", "x.jsonl", "--vary", "beam=8", "--vary", "beam=9"], 2, "beam twice"),
        (["info", "nowhere"], 1, "nowhere"),
    ],
)
def test_errors_name_the_value_and_set_the_code(
    call: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(call) == code
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    [
        [],
        ["transcribe"],
        ["transcribe", "x", "--language", "xx"],
        ["transcribe", "x", "--format", "txt,odd"],
        ["transcribe", "x", "--beam_size", "5"],
        ["transcribe", "x", "--task", "translate"],
        ["transcribe", "x", "--highlight_words", "maybe"],
        ["transcribe", "x", "--word_timestamps", "False"],
        ["sing"],
        ["evaluate", "x", "--steps", "1,two"],
    ],
)
def test_a_wrong_call_leaves_with_two(call: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(call)
    assert left.value.code == 2


def test_info_counts_what_is_inside(folder: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(folder)]) == 0
    total = sum(p.numel() for p in model.network.parameters())
    assert f"{total:,}" in capsys.readouterr().out


def test_info_of_the_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "26b"]) == 0
    out = capsys.readouterr().out
    assert "188" in out
    assert "2816" in out
    assert "22,978,560" in out


def test_evaluate_decodes_and_score_scores_again(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"audio_filepath": clip.name, "duration": 1.0, "text": text, "lang": code}
        for text, code in (("abc", "en"), ("def", "de"))
    ]
    for number, line in enumerate(lines):  # each recording has its own file
        line["audio_filepath"] = Path(shutil.copy(clip, tmp_path / f"{number}.wav")).name
    manifest, out = tmp_path / "two.jsonl", tmp_path / "out"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    call = ["evaluate", str(manifest), "--model", str(folder), "--out", str(out), "--threads", "1"]
    decoders = ["--decoders", "ctc,ar,diffusion,seeded", "--steps", "1,2", "--seeds", "2", "--find-language"]
    assert cli.main([*call, *decoders]) == 0
    page = capsys.readouterr().out
    assert page == (out / "report.md").read_text(encoding="utf-8").split("![", maxsplit=1)[0].rstrip() + "\n"
    assert "| decoder | en | de | mean |" in page
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert list(report["systems"]) == ["ctc", "ar", "diffusion-1", "diffusion-2", "seeded-1", "seeded-2"]
    assert len((out / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()) == 2 * 8

    assert cli.main(["score", str(out), "--normaliser", "none", "--out", str(tmp_path / "again")]) == 0
    assert "(normaliser: none)" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "results.json").read_text(encoding="utf-8"))
    assert again["normaliser"] == "none"
    assert cli.main(["score", str(out / "hypotheses.jsonl"), "--compare", "ctc", "ar"]) == 0
    assert "# ctc against ar (normaliser: basic)" in capsys.readouterr().out
    assert cli.main(["score", str(out), "--compare", "ctc", "none"]) == 2


def test_a_worse_report_leaves_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(n, "seeded-8", WORDS[n]) for n in range(8)]
    for name, said in (("good", rows), ("bad", [r | {"hypothesis": r["hypothesis"][1:]} for r in rows])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hypotheses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in said), encoding="utf-8")
        assert cli.main(["score", str(tmp_path / name), "--out", str(tmp_path / name)]) == 0
    good, bad = (str(tmp_path / name) for name in ("good", "bad"))
    capsys.readouterr()
    assert cli.main(["score", bad, "--against", f"{good}/results.json"]) == 1
    told = capsys.readouterr()
    assert "| seeded-8 | en | 0.0 | 11" in told.out
    assert "seeded-8 on dev: the mean CER rose by 11" in told.err
    assert cli.main(["score", bad, "--against", f"{good}/results.json", "--margin", "12"]) == 0
    assert cli.main(["score", good, "--against", f"{bad}/results.json", "--compare", "seeded-8", "seeded-8"]) == 0
    assert "| better |" in capsys.readouterr().out
    assert cli.main(["score", bad, "--against", f"{bad}/results.json"]) == 2
    assert cli.main(["score", bad, "--margin", "2"]) == 2
    assert "--against" in capsys.readouterr().err


def test_the_log_of_a_run_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hypotheses.jsonl").write_text(json.dumps(row(0, "ctc", "x")) + "\n", encoding="utf-8")
    log = tmp_path / "log.jsonl"
    log.write_text('{"stage": "ctc", "step": 1, "ctc": 9.0}\n', encoding="utf-8")
    out = tmp_path / "out"
    assert cli.main(["score", str(tmp_path), "--log", str(log), "--out", str(out)]) == 0
    assert "ctc loss 9.00" in capsys.readouterr().out
    assert (out / "training.png").is_file()
    assert cli.main(["score", str(tmp_path), "--log", str(tmp_path / "none")]) == 2


def test_what_is_wrong_beside_a_call_is_known_before_it_decodes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--log", "no-log"], ["--against", "no-report"], ["--margin", "1"]):
        assert cli.main(["evaluate", "no-such-manifest.jsonl", *words]) == 2
        assert "manifest" not in capsys.readouterr().err


def test_every_option_of_evaluate_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffasr.evaluate import against, folder, report, run, systems, training_log

    seen: list[Any] = []
    monkeypatch.setattr(run, "evaluate", lambda *words: seen.extend(words))
    monkeypatch.setattr(report, "write_report", lambda *words, **more: seen.append((words, more)) or EMPTY)  # type: ignore[func-returns-value]
    monkeypatch.setattr(training_log, "read_log", lambda path: {"log": path})
    monkeypatch.setattr(against, "load_standard", lambda *words, **more: (words, more))
    monkeypatch.setattr(against, "judge", lambda *words: seen.append(words) or ("", []))  # type: ignore[func-returns-value]
    monkeypatch.setattr(folder, "read_rows", lambda path: ["rows"])
    words = "evaluate a b --model m --decoders ctc --steps 1,2 --seeds 3 --votes 4 --baseline whisper:x"
    words += " --baseline whisper:y --beams 1,5 --normaliser whisper --batch 6 --threads 7 --device cuda"
    words += " --find-language --limit 8 --out o --log l --against r --margin 2"
    words += " --vary start=ctc,sample --vary ctc-weight=0,0.3"
    assert cli.main(words.split()) == 0
    options = systems.EvaluationOptions(
        decoders=("ctc",), steps=(1, 2), seeds=3, votes=4, baselines=["whisper:x", "whisper:y"], beams=(1, 5),
        normaliser="whisper", batch=6, threads=7, device="cuda", find_language=True, limit=8,
        vary=(("start", ("ctc", "sample")), ("ctc_weight", ("0", "0.3"))),
    )  # fmt: skip
    asked = ((Path("r"), 2.0), {"normaliser": "whisper", "rows": Path("o")})
    written = ((Path("o"), "whisper", Path("o")), {"training": {"log": Path("l")}})
    assert seen == ["m", ["a", "b"], options, Path("o"), written, (asked, EMPTY, ["rows"])]
