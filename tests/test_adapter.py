"""An adapter is small, comes back whole, and finds its language model and its ear where its config says."""

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from adapters import BRIDGE, SPEECH_WIDTH, adapter_model, write_sources
from conftest import LETTERS, tiny_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

import diffasr
from diffasr.errors import ModelError, OptionError
from diffasr.model import adapter, checkpoint
from diffasr.model.adapter import RENAMED, from_gemma, language_tokens, rename
from diffasr.model.checkpoint import FILES
from diffasr.model.config import GemmaConfig, ModelConfig
from diffasr.model.loaded import Model
from diffasr.model.network import Speech
from diffasr.text import LANGUAGES
from diffasr.transcribe import Transcriber
from diffasr.windows import ListenOptions


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def made(sources: tuple[Path, Path]) -> Model:
    """A model that tests share and must not change."""
    return adapter_model(sources)


@pytest.fixture
def folder(made: Model, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "adapter", made)
    return tmp_path / "adapter"


def logits_of(model: Model) -> torch.Tensor:
    dice = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 80, SPEECH_WIDTH, generator=dice)
    speech = Speech(frames=frames, lengths=torch.tensor([80, 48]))
    canvas = torch.randint(40, (2, 16), generator=dice)
    with torch.inference_mode():
        cache = model.network.prefill(speech, torch.tensor([0, 1]))
        return model.network.denoise(canvas, cache, lengths=torch.tensor([16, 9]))


def test_a_saved_adapter_comes_back_and_says_the_same(made: Model, folder: Path) -> None:
    again = checkpoint.load(folder)
    assert again.config == made.config
    before, after = made.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits_of(again), logits_of(made))
    assert not any(p.requires_grad for p in again.network.parameters())


def test_only_what_is_trained_is_saved(made: Model, folder: Path, sources: tuple[Path, Path]) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    names = set(load_file(folder / "model.safetensors"))
    assert all(name.startswith("projector.") or ".lora_" in name for name in names)
    assert not any(".default" in name for name in names), "peft's own naming"
    stacks = ["encoder.language_model", "decoder"]
    assert {s for s in stacks for name in names if f"model.{s}.layers" in name} == set(stacks)
    trained = sum(v.numel() for v in load_file(folder / "model.safetensors").values())
    assert trained == sum(
        p.numel() for n, p in made.network.named_parameters() if n.startswith("projector") or "lora" in n
    )
    whole = sum((place / "model.safetensors").stat().st_size for place in sources)
    assert (folder / "model.safetensors").stat().st_size < 0.5 * whole


def test_lora_has_an_effect_in_each_stack(made: Model, sources: tuple[Path, Path]) -> None:
    bare = from_gemma(*sources, name="bare", projector=BRIDGE, dtype=torch.float32)
    bare.network.eval()
    plain = {n: v for n, v in bare.network.state_dict().items() if "lora" not in n and "projector" not in n}
    assert all(torch.equal(made.network.state_dict()[name], value) for name, value in plain.items())
    for stack in ("encoder.language_model", "decoder"):
        changed = adapter_model((Path(_gemma(made).source), Path(_gemma(made).whisper)))
        for name, parameter in changed.network.named_parameters():
            if f"{stack}.layers" in name and "lora_B" in name:
                parameter.zero_()
        assert not torch.allclose(logits_of(changed), logits_of(made), atol=1e-4), stack


def _gemma(model: Model) -> GemmaConfig:
    assert isinstance(model.config.decoder, GemmaConfig)
    return model.config.decoder


def test_the_parts_come_from_their_repositories_at_their_revisions(
    made: Model, folder: Path, sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["decoder"] |= {"source": "big/gemma", "revision": "g7", "whisper": "an/ear", "whisper_revision": "w1"}
    (folder / "config.json").write_text(json.dumps(fields))
    places = {"us/adapter": folder, "big/gemma": sources[0], "an/ear": sources[1]}
    asked: dict[str, str | None] = {}

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked[name] = revision
        return str(places[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert torch.equal(logits_of(checkpoint.load("us/adapter", revision="a3")), logits_of(made))
    assert asked == {"us/adapter": "a3", "big/gemma": "g7", "an/ear": "w1"}


def test_weights_of_another_adapter_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    first = next(name for name in weights if "lora_A" in name)
    weights["stranger"] = weights.pop(first)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing backbone.*lora_A"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("projector", {"letters": 2}, "letters is 2"),
        ("decoder", {"languages": [1, 2]}, "2 language tokens"),
        ("decoder", {"source": ""}, "source is ''"),
        ("decoder", {"before": [1, -2]}, "before is"),
        ("decoder", {"revision": 3}, "revision is 3"),
        ("projector", {"norms": ["middle"]}, "norms is"),
    ],
)
def test_a_config_that_fits_nothing_is_refused(folder: Path, part: str, change: dict[str, Any], told: str) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields[part] |= change
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=told):
        checkpoint.load(folder)


def test_config_json_of_a_gemma_is_a_round_trip(made: Model) -> None:
    assert made.config.backbone == "gemma"
    assert ModelConfig.from_json(made.config.to_json()) == made.config


def test_it_transcribes(folder: Path) -> None:
    dice = torch.Generator().manual_seed(0)
    sound = (0.1 * torch.randn(24_000, generator=dice)).numpy()
    result = diffasr.load(folder).transcribe(sound, language="de", listen=ListenOptions(vad=False, no_speech=1.0))
    assert result.text
    assert result.duration == 1.5
    assert result.language == "de"
    assert result.model == "tiny-gemma"


def test_load_passes_the_precision_on(folder: Path) -> None:
    encoder = diffasr.load(folder, precision="bfloat16").model.network.encoder
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}


def test_whole_encoding_gives_188_slots_however_short_the_clip(made: Model) -> None:
    speech = Transcriber(made).hear([torch.zeros(8000).numpy()])
    assert speech.frames.shape == (1, 1500, SPEECH_WIDTH)
    assert made.network.slots(speech).tolist() == [188]


def test_missing_packages_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffasr.model.adapter", None)
    with pytest.raises(OptionError, match=r"pip install 'diffasr\[gemma\]'"):
        checkpoint.load(folder)


def gemma_tokenizer(path: Path) -> Path:
    """Our tiny tokenizer under the names that Gemma has for special tokens, not all of them flagged as such."""
    spec = json.loads(tiny_tokenizer().backend.to_str())
    for token in spec["added_tokens"]:
        token["content"] = RENAMED[token["content"]]
        token["special"] = token["content"] in ("<pad>", "<bos>")
    path.write_text(json.dumps(spec))
    return path


def test_a_renamed_tokenizer_splits_as_before(tmp_path: Path) -> None:
    path = gemma_tokenizer(tmp_path / "tokenizer.json")
    theirs, ours = Backend.from_file(str(path)), rename(path)
    assert ours.size == theirs.get_vocab_size()
    for text in ("the cat", "a that then", LETTERS):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode([*ours.encode(text), ours.end, 5]) == text
    assert {ours.backend.token_to_id(a) for a in RENAMED} == {theirs.token_to_id(b) for b in RENAMED.values()}
    assert ours.decode([ours.start, ours.languages["hi"], *ours.encode("cat")]) == "cat", "special ones are not text"
    again = rename_again(ours.backend, tmp_path)
    assert again.backend.to_str() == ours.backend.to_str()


def rename_again(backend: Backend, folder: Path) -> Any:
    backend.save(str(folder / "again.json"))
    return rename(folder / "again.json")


def test_what_is_no_gemma_tokenizer_is_refused(tmp_path: Path) -> None:
    spec = json.loads(gemma_tokenizer(tmp_path / "a.json").read_text())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != "<unused3>"]
    (tmp_path / "b.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match="<unused3>"):
        rename(tmp_path / "b.json")


def test_a_language_is_a_word_where_the_tokenizer_has_it_and_a_special_token_where_not() -> None:
    tokenizer = tiny_tokenizer()
    assert list(language_tokens(tokenizer)) == list(tokenizer.languages.values()), "it has no capitals"
    words = {f"Ġ{name}": 100 + n for n, name in enumerate(LANGUAGES.values())}

    class Speller:
        def encode(self, text: str, **_: Any) -> Any:
            return type("Found", (), {"ids": [words[text.replace(" ", "Ġ")], 7]})

    tokenizer.backend = Speller()  # type: ignore[assignment]
    assert list(language_tokens(tokenizer)) == list(words.values())


def test_copies_go_into_the_parameters_that_are_there(made: Model, sources: tuple[Path, Path]) -> None:
    fresh = from_gemma(*sources, name="fresh", projector=BRIDGE, rank=2, dtype=torch.float32)
    places = {name: value.data_ptr() for name, value in fresh.network.state_dict().items()}
    adapter.put(fresh.network, adapter.adapter(made.network), source="here")
    assert places == {name: value.data_ptr() for name, value in fresh.network.state_dict().items()}
    assert torch.equal(logits_of(fresh), logits_of(made))
