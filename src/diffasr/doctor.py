"""An install in, findings out: what works, what is missing, and the command that mends it.

Nothing heavy is imported before its own check: who has no torch must be told so.
"""

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

import diffasr
from diffasr.errors import DiffasrError

State: TypeAlias = Literal["ok", "missing", "broken"]
PACKAGE = "diffasr"
CHECKSUMS = "SHA256SUMS"
"""As ``sha256sum`` writes it, in the folder of a model; a model may do without."""
CODECS = ("aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
SOUND_FORMATS = ("WAV", "FLAC", "OGG", "MP3")
SAMPLE = Path(diffasr.__file__).parents[2] / "samples" / "en.opus"
"""In the repository; an installed package has none."""
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check says."""

    name: str
    state: State
    """``missing``: something that diffasr can do without. ``broken``: something that it needs."""
    found: str
    remedy: str = ""


def examine(model: str = "mini", *, is_offline: bool = False) -> list[Finding]:
    """Check everything, the network only if allowed; what a check stumbles over becomes its finding."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": partial(requirements, None),
        "runtime": _runtime,
        "torch": _torch,
        "soundfile": _soundfile,
        "av": _av,
        "model": partial(_model, model),
        **{extra: partial(requirements, extra) for extra in extras()},
        "gpu": _gpu,
        "hub cache": _hub_cache,
        "network": _network,
        "transcription": partial(_transcription, model),
    }
    if is_offline:
        del checks["network"]
    mend = _reinstall() if model == "mini" else f"diffasr info {model}"
    return [_attempt(name, check, mend) for name, check in checks.items()]


def render(findings: list[Finding]) -> str:
    """One line a finding, and one for what mends it."""
    width = max(len(f.name) for f in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8}{finding.name:{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':{width + 10}}mend it: {finding.remedy}")
    return "\n".join(lines) + "\n"


def extras() -> list[str]:
    """What ``pip install 'diffasr[…]'`` can add for users."""
    declared: list[str] = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    return [extra for extra in declared if extra != "dev"]


def requirements(extra: str | None) -> Finding:
    """Whether the packages of an extra, or those that are always needed, are there and new enough."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    is_extra = {r: r.marker is not None and "extra" in str(r.marker) for r in wanted}
    wanted = [r for r in wanted if is_extra[r] == (extra is not None)]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": extra or ""})]
    lacking, faults = [], []
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            faults.append(f"no {one.name}")
        else:
            if one.specifier.contains(version, prereleases=True):
                continue
            faults.append(f"{one.name} is {version}")
        lacking.append(f"'{one.name}{one.specifier}'")
    name = "packages" if extra is None else f"[{extra}]"
    if not lacking:
        return Finding(name=name, state="ok", found=", ".join(r.name for r in wanted))
    state: State = "broken" if extra is None else "missing"
    return Finding(name=name, state=state, found=", ".join(faults), remedy=f"pip install {' '.join(lacking)}")


def _attempt(name: str, check: Callable[[], Finding], mend: str) -> Finding:
    try:
        return check()
    except ImportError as error:
        package = (error.name or name).split(".")[0].replace("_", "-")
        return Finding(name=name, state="broken", found=str(error), remedy=f"pip install --force-reinstall {package}")
    except DiffasrError as error:
        return Finding(name=name, state="broken", found=str(error).splitlines()[0], remedy=mend)
    except Exception as error:  # a doctor who faints helps nobody: whatever is broken here is a finding
        return Finding(name=name, state="broken", found=f"{type(error).__name__}: {error}", remedy=mend)


def _reinstall() -> str:
    """In a checkout, from there; else by name."""
    root = SAMPLE.parents[1]
    return f"pip install --force-reinstall {f'-e {root}' if (root / 'pyproject.toml').is_file() else PACKAGE}"


def _python() -> Finding:
    from packaging.specifiers import SpecifierSet

    needed, here = metadata.metadata(PACKAGE)["Requires-Python"], platform.python_version()
    if SpecifierSet(needed).contains(here, prereleases=True):
        return Finding(name="python", state="ok", found=f"{here} on {platform.system()} {platform.machine()}")
    return Finding(name="python", state="broken", found=f"{here}, not {needed}", remedy="install a newer Python")


def _runtime() -> Finding:
    import onnxruntime

    from diffasr.loading import cores

    return Finding(name="runtime", state="ok", found=f"ONNX Runtime {onnxruntime.__version__}, {cores()} threads")


def _torch() -> Finding:
    import torch

    cores = os.cpu_count() or 1
    return Finding(name="torch", state="ok", found=f"{torch.__version__}, {torch.get_num_threads()} threads of {cores}")


def _soundfile() -> Finding:
    import soundfile

    lacking = sorted(set(SOUND_FORMATS) - set(soundfile.available_formats()))
    found = f"{soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    if lacking:  # av reads these as well
        remedy = "pip install --force-reinstall soundfile"
        return Finding(name="soundfile", state="missing", found=f"{found} without {' '.join(lacking)}", remedy=remedy)
    return Finding(name="soundfile", state="ok", found=f"{found} reads {' '.join(SOUND_FORMATS)}")


def _av() -> Finding:
    import av

    lacking = sorted(set(CODECS) - set(av.codecs_available))
    if lacking:
        remedy = "pip install --force-reinstall --only-binary :all: av"
        return Finding(name="av", state="broken", found=f"{av.__version__} without {' '.join(lacking)}", remedy=remedy)
    return Finding(name="av", state="ok", found=f"{av.__version__} reads {' '.join(CODECS)}")


def _model(model: str) -> Finding:
    """Its files are there, and are those that the checksums were made of."""
    from diffasr.model.hub import find

    folder = find(model)
    listed = folder / CHECKSUMS
    if not listed.is_file():
        return Finding(name="model", state="ok", found=f"{model} in {folder} (it has no {CHECKSUMS} to compare with)")
    lines = [line.split(maxsplit=1) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    for digest, name in lines:
        path = folder / name.removeprefix("*")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return Finding(name="model", state="broken", found=f"{path} is damaged", remedy=_reinstall())
    return Finding(name="model", state="ok", found=f"{model} in {folder}, {len(lines)} checksums agree")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(name="gpu", state="ok", found=f"{torch.cuda.get_device_name()}: --device cuda")
    if torch.backends.mps.is_available():
        return Finding(name="gpu", state="ok", found="Apple: --device mps")
    return Finding(
        name="gpu", state="missing", found=f"torch {torch.__version__} sees none: the CPU does the work",
        remedy="none needed; if there is one: pip install --force-reinstall torch, as pytorch.org says for its driver",
    )  # fmt: skip


def _hub_cache() -> Finding:
    """Whether models from the hub can be kept."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.parents) if path.is_dir())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        found = f"{cache} can't be written to ({error.strerror}): models of the hub can't be kept"
        return Finding(name="hub cache", state="missing", found=found, remedy="export HF_HOME=/a/folder/of/yours")
    return Finding(name="hub cache", state="ok", found=str(cache))


def _network() -> Finding:
    """Whether models can be fetched from the hub: needed for none of the embedded ones."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS).close()
    except Exception as error:  # of the client, which raises many kinds
        found = f"{constants.ENDPOINT} can't be reached ({error})"
        remedy = "none needed for mini; behind a proxy: export HTTPS_PROXY=http://…"
        return Finding(name="network", state="missing", found=found, remedy=remedy)
    return Finding(name="network", state="ok", found=constants.ENDPOINT)


def _transcription(model: str) -> Finding:
    """A recording of the repository, or a tone where there is none, goes all the way."""
    import numpy as np

    from diffasr.audio import SAMPLE_RATE_HZ
    from diffasr.transcribe import load

    asr = load(model)
    start = time.perf_counter()
    if SAMPLE.is_file():
        said = asr.transcribe(SAMPLE)
        if not said.text:
            return Finding(name="transcription", state="broken", found=f"{SAMPLE}: no word heard", remedy=_reinstall())
        found = f"{SAMPLE.name}: {said.text!r}"
    else:
        tone = np.sin(2 * np.pi * 440 / SAMPLE_RATE_HZ * np.arange(SAMPLE_RATE_HZ), dtype=np.float32)
        said = asr.transcribe(0.1 * tone)
        found = "a tone of one second"
    taken = time.perf_counter() - start
    return Finding(name="transcription", state="ok", found=f"{found} in {taken:.1f} s")
