"""Names lead to folders; what goes wrong with the hub says what to do. Nothing here touches the network."""

from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from conftest import random_model
from huggingface_hub import constants, errors

from diffasr.errors import DownloadError, ModelError
from diffasr.model import checkpoint
from diffasr.model.hub import FILES, REFERENCE_FILE, find, licence

NAME = "owner/name"


def answer(code: int) -> httpx2.Response:
    return httpx2.Response(code, request=httpx2.Request("GET", f"https://huggingface.co/api/models/{NAME}"))


def offline() -> Exception:
    error = errors.LocalEntryNotFoundError("outgoing traffic has been disabled")
    error.__cause__ = errors.OfflineModeIsEnabled("offline")
    return error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "tiny", random_model())
    return tmp_path / "tiny"


def refuse(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise fault

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (
            errors.GatedRepoError("gated", response=answer(403)),
            f"accept the terms on https://huggingface.co/{NAME}.*HF_TOKEN",
        ),
        (errors.LocalTokenNotFoundError("no token"), "there is none: run `hf auth login`"),
        (errors.RevisionNotFoundError("404", response=answer(404)), "no revision 'v9'"),
        (errors.RepositoryNotFoundError("401", response=answer(401)), "is the id right.*private.*HF_TOKEN"),
        (errors.DisabledRepoError("403", response=answer(403)), "disabled"),
        (errors.LocalEntryNotFoundError("no route"), "is there a network.*HF_ENDPOINT"),
        (offline(), "HF_HUB_OFFLINE is set"),
        (errors.HfHubHTTPError("403", response=answer(403)), "refuses the token .HTTP 403.*hf auth login"),
        (errors.HfHubHTTPError("429", response=answer(429)), "HTTP 429: try again"),
        (errors.HfHubHTTPError("503", response=answer(503)), "HTTP 503: try again"),
        (OSError("disk full"), "disk full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_fault_of_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, fault: Exception, advice: str) -> None:
    refuse(monkeypatch, fault)
    with pytest.raises(DownloadError, match=f"'{NAME}' could not be fetched.*{advice}") as caught:
        find(NAME, revision="v9")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is fault


@pytest.mark.parametrize("name", ["a/b/c", "typo"])
def test_what_is_no_hub_id_is_never_asked_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse(monkeypatch, AssertionError("never asked"))
    with pytest.raises(ModelError, match=f"'{name}'"):
        find(name)


def test_a_malformed_hub_id_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="'owner/na--me' is neither"):
        find("owner/na--me")


def test_names_lead_to_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(folder) == folder
    assert find(str(folder)) == folder
    assert find("mini").parts[-2:] == ("assets", "mini")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find("~/tiny") == folder
    with pytest.raises(ModelError, match=r"'./nowhere'.*config\.json, model\.safetensors, tokenizer\.json"):
        find("./nowhere")


def test_the_hub_is_asked_for_the_files_of_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert checkpoint.load(NAME, revision="v1").config.name == "tiny"
    assert asked == [(NAME, {"revision": "v1", "allow_patterns": [*FILES, REFERENCE_FILE]})]


def cached(cache: Path, folder: Path) -> None:
    """``folder`` as the hub's client keeps what it has fetched."""
    place = cache / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / ("0" * 40))


def test_what_was_fetched_once_needs_no_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set and it is not in the cache"):
        checkpoint.load(NAME)
    cached(tmp_path / "cache", folder)
    assert checkpoint.load(NAME).config.name == "tiny"


def test_half_a_repository_in_the_cache_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (folder / "model.safetensors").unlink()
    cached(tmp_path / "cache", folder)
    with pytest.raises((ModelError, DownloadError), match=rf"{NAME}.*(model\.safetensors|not in the cache)"):
        checkpoint.load(NAME)


def test_a_licence_is_what_the_card_names_or_where_to_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert licence(str(folder)) == f"see {folder}"
    card = folder / "README.md"
    card.write_text("# a card without metadata")
    assert licence(str(folder)) == f"see {card}"
    card.write_text("---\nlicense: mit\n---\n# a card")
    assert licence(str(folder)) == f"mit ({card})"
    card.write_text("---\nlicense: other\nlicense_name: gemma\nlicense_link: https://a.b/terms\n---\n")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert licence(NAME) == "gemma (https://a.b/terms)"
    refuse(monkeypatch, errors.LocalEntryNotFoundError("no route"))
    assert licence(NAME) == f"see https://huggingface.co/{NAME}"
    assert licence("mini").endswith("MODEL_CARD.md")
