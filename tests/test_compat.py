"""The reference's calls give what ours give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import adapter_model, write_sources
from conftest import random_model

from diffasr import SamplingOptions, Transcriber, compat
from diffasr.errors import OptionError
from diffasr.model import adapter, checkpoint

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture(scope="module")
def recording() -> Path:
    return sorted(SAMPLES.glob("*.opus"))[0]


def test_transcribe_is_ours_with_its_steps(recording: Path) -> None:
    model, tok, fe = compat.load("mini")
    ours = Transcriber(model)
    for steps in (1, 16):
        expected = ours.transcribe(recording, options=SamplingOptions(steps=steps)).text
        assert compat.transcribe(recording, model, tok, fe, max_steps=steps) == expected
    assert compat.transcribe(recording, model, tok, fe) == expected, "16 steps unless told"
    assert expected


def test_what_load_gave_is_what_is_used(tmp_path: Path, recording: Path) -> None:
    checkpoint.save(tmp_path, random_model())
    model, tok, fe = compat.load(tmp_path, device="cpu")
    heard = []

    def listening(wav: object) -> np.ndarray:
        heard.append(wav)
        return fe(recording)[:16_000]

    compat.transcribe("anything", model, tok, listening, max_steps=1)
    assert heard == ["anything"]
    assert tok.encode("the cat") == model.tokenizer.encode("the cat")
    with pytest.raises(OptionError, match="abacus"):
        compat.load(tmp_path, device="abacus")


def test_the_references_own_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = write_sources(tmp_path)
    made = adapter_model(sources)
    torch.save(adapter.adapter(made.network), tmp_path / "diffusion_asr_small.pt")
    convert = adapter.plan_adapter
    monkeypatch.setattr(adapter, "plan_adapter", lambda *_, **known: convert(*sources, **known))
    model, _, _ = compat.load(tmp_path / "diffusion_asr_small.pt")
    state = model.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in made.network.state_dict().items())
