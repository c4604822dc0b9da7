"""Names in, folders out: the embedded model, a local folder, or a repository of the Hugging Face hub.

What was fetched once is read from the hub's cache from then on, with or without a network.
"""

import os
from importlib import resources
from pathlib import Path

from diffasr.errors import DownloadError, ModelError

FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""Of a checkpoint."""
WHISPER_FILES = ("config.json", "model.safetensors")
LANGUAGE_MODEL_FILES = ("*.json", "*.safetensors")
REFERENCE = "interfaze-ai/diffusion-gemma-asr-small"
"""Hub id of the reference, whose adapter was trained by others."""
REFERENCE_FILE = "diffusion_asr_small.pt"
"""What the reference's repository holds in place of our three files."""
CARDS = ("README.md", "MODEL_CARD.md")
"""Where a folder tells its licence; a hub repository has the first."""
EMBEDDED = ("mini",)


def find(name: str | os.PathLike[str], *, revision: str | None = None, files: tuple[str, ...] = FILES) -> Path:
    """The folder of an embedded model, a local folder, or a hub id (downloaded once, then from the cache).

    files: what it must hold; a pattern may match nothing. A folder with the reference's file is as good as one with
    ours. Raises ModelError for a folder that lacks one of ``files``, DownloadError where the hub does not give it.
    """
    given = os.fspath(name)
    if given in EMBEDDED:
        folder = Path(str(resources.files("diffasr") / "assets" / given))
    elif is_local(given):
        folder = Path(given).expanduser()
    elif given.count("/") != 1:
        raise ModelError(f"model {given!r} is neither a folder, nor a hub id (owner/name), nor {EMBEDDED[0]}")
    else:
        folder = fetch(given, revision, (*files, REFERENCE_FILE) if files == FILES else files)
    missing = [f for f in files if "*" not in f and not (folder / f).is_file()]
    if missing and not (files == FILES and (folder / REFERENCE_FILE).is_file()):
        raise ModelError(
            f"model {given!r}: {folder} has no {', '.join(missing)}; give a model folder, "
            f"a hub id such as owner/name, or {' or '.join(EMBEDDED)}"
        )
    return folder


def place_of(name: str | os.PathLike[str]) -> Path:
    """What ``checkpoint.load`` reads: the reference's own ``.pt`` file, or the folder that ``find`` gives.

    Raises ModelError, also for a file that is not there, and DownloadError.
    """
    file = Path(name)
    if file.suffix != ".pt":
        return find(name)
    if not file.is_file():
        raise ModelError(f"there is no {file}: give the reference's .pt file")
    return file


def is_local(name: str) -> bool:
    """Whether ``name`` is meant as a folder of this machine."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~"))


def fetch(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """The folder of a hub repository in the cache, fetched where it is not there yet.

    Raises ModelError for a name that is none, DownloadError that says what to do for all else.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise ModelError(f"model {name!r} is neither a folder nor a hub id (owner/name)") from error
    except Exception as error:  # the hub client raises a dozen kinds, none of them with a remedy
        raise DownloadError(
            f"model {name!r} could not be fetched from the hub: {remedy(name, revision, error)}"
        ) from error


def remedy(name: str, revision: str | None, error: Exception) -> str:
    """What was wrong with a download, and what to do about it."""
    from huggingface_hub import errors

    login = "run `hf auth login`, or set HF_TOKEN, with a token of huggingface.co/settings/tokens"
    folder = "or give a local folder instead"
    table: dict[type[Exception], str] = {  # the first that fits: some kinds are kinds of others
        errors.GatedRepoError: f"its owner asks for consent first: accept the terms on https://huggingface.co/{name}, "
        f"then {login} of the same account",
        errors.LocalTokenNotFoundError: f"it wants a token and there is none: {login}",
        errors.RevisionNotFoundError: f"it has no revision {revision!r}: give a commit, tag or branch that it has, or "
        "none for the newest",
        errors.DisabledRepoError: f"the hub has disabled it: choose another, {folder}",
        errors.RepositoryNotFoundError: "there is none of that name that you may see: is the id right? If it is "
        f"private, {login}",
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set and it is not in the cache: unset it for one call with a "
        f"network, {folder}",
        errors.LocalEntryNotFoundError: "the hub can't be reached and it is not in the cache: is there a network? "
        f"(HF_ENDPOINT names a mirror.) Fetch it once where there is one, {folder}",
    }
    if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        error = error.__cause__
    for kind, advice in table.items():
        if isinstance(error, kind):
            return advice
    if isinstance(error, errors.HfHubHTTPError):
        code = error.response.status_code
        if code in (401, 403):
            return f"the hub refuses the token (HTTP {code}): {login} that may read it"
        return f"the hub answers HTTP {code}: try again in a while, {folder}"
    return f"{error}; is the id right, and is there a network? A local folder needs none"


def licence(name: str, *, revision: str | None = None) -> str:
    """The licence that a repository's card names, or where to look for it; of the repository only the card is read."""
    from huggingface_hub import metadata_load

    page, card = f"https://huggingface.co/{name}", None
    try:
        if name in EMBEDDED or is_local(name):
            folder = find(name, files=())
            card = next((folder / file for file in CARDS if (folder / file).is_file()), None)
            page = str(card or folder)
        else:
            card = fetch(name, revision, CARDS[:1]) / CARDS[0]
        found = (metadata_load(card) if card else None) or {}
    except OSError:  # no network, no consent, no card
        found = {}
    named = found.get("license_name") or found.get("license")
    return f"{named} ({found.get('license_link') or page})" if named else f"see {page}"
