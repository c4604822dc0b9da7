"""What the doctor finds when something is missing, damaged or fine, and that it says what mends it."""

import hashlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from diffasr import cli, doctor
from diffasr.doctor import CHECKSUMS, Finding, examine, extras, render, requirements
from diffasr.errors import ModelError
from diffasr.model.checkpoint import save
from diffasr.model.loaded import Model


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    save(place, model)
    return place


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_network", lambda: Finding(name="network", state="missing", found="none"))


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Makes up what diffasr needs; gives what is installed, which is nothing yet."""
    installed: dict[str, str] = {}
    needs = ["numpy>=2", "rich<1; python_version<'3'", "peft>=0.19; extra == 'train'", "zhconv; extra == 'train'"]

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setattr(metadata, "version", version)
    return installed


def found(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_sound_install_is_found_sound(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SAMPLE", tmp_path / "none.opus")
    findings = found(examine(str(folder), is_offline=True))
    assert [f for f in findings.values() if f.state == "broken"] == []
    assert "network" not in findings
    assert "a tone" in findings["transcription"].found
    assert str(folder) in findings["model"].found
    assert {f"[{extra}]" for extra in extras()} <= set(findings)
    assert "dev" not in extras()


def test_each_missing_package_has_its_command(declared: dict[str, str]) -> None:
    needed = requirements(None)
    assert (needed.state, needed.remedy) == ("broken", "pip install 'numpy>=2'"), "rich is for another Python"
    extra = requirements("train")
    assert (extra.state, extra.remedy) == ("missing", "pip install 'peft>=0.19' 'zhconv'")
    declared.update({"numpy": "2.1", "peft": "0.18", "zhconv": "1"})
    assert requirements(None).state == "ok"
    old = requirements("train")
    assert (old.found, old.remedy) == ("peft is 0.18", "pip install 'peft>=0.19'")
    declared["peft"] = "0.20"
    assert requirements("train") == Finding(name="[train]", state="ok", found="peft, zhconv")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("module", "check"), [("torch", "torch"), ("soundfile", "soundfile"), ("av", "av")])
def test_a_package_that_cannot_be_imported_is_a_finding(
    module: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_transcription", lambda model: Finding(name="transcription", state="ok", found=""))
    monkeypatch.setitem(sys.modules, module, None)
    finding = found(examine())[check]
    assert (finding.state, finding.remedy) == ("broken", f"pip install --force-reinstall {module}")


def test_codecs_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import av
    import soundfile

    monkeypatch.setattr(av, "codecs_available", set(doctor.CODECS) - {"opus"})
    assert (doctor._av().state, "opus" in doctor._av().found) == ("broken", True)
    monkeypatch.setattr(soundfile, "available_formats", lambda: dict.fromkeys(("WAV", "FLAC", "OGG")))
    assert (doctor._soundfile().state, "without MP3" in doctor._soundfile().found) == ("missing", True)


def test_a_damaged_model_is_known_by_its_checksums(model: Model, tmp_path: Path) -> None:
    save(tmp_path, model)
    weights = tmp_path / "model.safetensors"
    (tmp_path / CHECKSUMS).write_text(f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  {weights.name}\n")
    assert "1 checksums agree" in doctor._model(str(tmp_path)).found
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = doctor._model(str(tmp_path))
    assert damaged.state == "broken" and str(weights) in damaged.found


@pytest.mark.parametrize("error", [ModelError("no model\nat all"), KeyError("x")])
def test_what_a_check_stumbles_over_is_its_finding(error: Exception) -> None:
    def check() -> Finding:
        raise error

    finding = doctor._attempt("name", check, "mend")
    assert (finding.state, finding.remedy) == ("broken", "mend")
    assert finding.found in ("no model", "KeyError: 'x'")


def test_a_model_that_hears_nothing_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffasr.transcript import Transcript

    class Deaf:
        def transcribe(self, source: Any) -> Transcript:
            return Transcript(text="", language="en", language_probability=1, duration=1, segments=(), model="deaf")

    monkeypatch.setattr("diffasr.transcribe.load", lambda name: Deaf())
    assert doctor._transcription("mini").state == "broken"


def test_hub_cache_and_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub" / "deep"))
    assert doctor._hub_cache().state == "ok"
    assert list(tmp_path.iterdir()) == [], "looking changes nothing"

    def refuse(**place: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "Read-only" in doctor._hub_cache().found

    class Session:
        def head(self, address: str, timeout: float) -> Any:
            raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert (doctor._network().state, "no route" in doctor._network().found) == ("missing", True)


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("missing", 0), ("broken", 1)])
def test_the_command_prints_a_table(
    state: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    table = [Finding(name="a", state="ok", found="fine"), Finding(name="long", state=state, found="it", remedy="do")]
    monkeypatch.setattr(doctor, "examine", lambda model, **more: asked.append((model, more)) or table)  # type: ignore[func-returns-value]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert cli.main(["doctor", "--model", "m", "--offline"]) == code
    assert asked == [("m", {"is_offline": True})]
    out = capsys.readouterr().out
    assert out == render(table)
    assert out.splitlines()[1:] == [f"{state:8}long  it", "              mend it: do"]
