"""Laws of a team: two processes make the run that one makes, stopped or not, with gemma's weights whole or in parts."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LETTERS, TIMES, random_model, tiny_tokenizer, tiny_whisper
from test_gemma import tiny_text
from torch import Tensor

from diffasr.errors import OptionError, RecipeError
from diffasr.model import checkpoint
from diffasr.model.adapter import from_gemma
from diffasr.model.config import ProjectorConfig
from diffasr.model.gemma import build_backbone
from diffasr.train import loop
from diffasr.train.data import FeatureStore
from diffasr.train.distributed import Team, load_state, recompute_, save_state, spread_
from diffasr.train.loop import train
from diffasr.train.lora import add_lora
from diffasr.train.stages import Recipe, Stage
from diffasr.train.start import kind_of, start

SAYS = ["the cat", "a dog", "say them", "no", "ein hund", "die katze", "ja", "das haus"]


def stage(name: str, rates: dict[str, float], **changes: Any) -> Stage:
    base: dict[str, Any] = {"steps": 3, "seconds": 3.0, "batches": 2, "warmup": 1, "ema": 0.5, "ctc": 0.5, "ar": 0.3}
    return Stage(name=name, rates=rates, **(base | changes))


def plan(folder: Path, kind: str, **changes: Any) -> Recipe:
    """A run of ``kind`` on what lies in ``folder``."""
    base: dict[str, Any] = {"evaluate_every": 10**6, "evaluate_count": 1, "save_every": 10**6, "autocast": False}
    if kind == "whisper":
        stages = (stage("ctc", {"projector": 1e-2}, diffusion=0.0),
                  stage("lora", {"lora": 1e-2, "conditioning": 1e-2}, lora_rank=2, draft_share=0.5))  # fmt: skip
        store = folder / "store"
        base |= {"features": (store,), "dev": store}
    else:
        stages = (stage("all", {"projector": 1e-2, "lora": 1e-2}, lora_rank=2, seconds=90.0),)
        base |= {"manifests": (folder / "train.jsonl",), "dev": folder / "train.jsonl"}
    return Recipe(name=kind, init=folder / kind, **(base | {"stages": stages} | changes))


def gemma_folder(place: Path) -> Path:
    """A new adapter on a random DiffusionGemma and a random Whisper, all of them on the disk."""
    source, whisper = place / "language", place / "ear"
    torch.manual_seed(0)
    build_backbone(tiny_text(), 192).save_pretrained(source)
    tiny_tokenizer().backend.save(str(source / "tokenizer.json"))
    tiny_whisper(positions=1500).save_pretrained(whisper)
    bridge = ProjectorConfig(hidden=24, strides=3)
    model = from_gemma(source, whisper, name="tiny", projector=bridge, rank=2, dtype=torch.float32)
    checkpoint.save(place / "gemma", model)
    return place / "gemma"


def write_clips(place: Path) -> None:
    import numpy as np
    import soundfile

    rows = []
    for number, text in enumerate(SAYS):
        dice = np.random.default_rng(number)
        soundfile.write(place / f"{number}.wav", dice.normal(0, 0.1, 8000 + 800 * number), 16_000)
        rows.append({"audio_filepath": f"{number}.wav", "duration": 0.5 + 0.05 * number, "text": text, "lang": "en"})
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def work(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does; it is started anew, so all it knows lies in ``folder``."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip
    loop._board = lambda out: None  # type: ignore[assignment]
    train(plan(folder, "whisper"), folder / "two-whisper")
    train(plan(folder, "whisper"), folder / "stopped", stop_after=4)
    for name, changes in {"two-gemma": {}, "spread": {"spread": True, "recompute": True}}.items():
        train(plan(folder, "gemma", **changes), folder / name)
    for stop_after in (2, None):
        train(plan(folder, "gemma", spread=True, recompute=True), folder / "spread-stopped", stop_after=stop_after)
    network: Any = checkpoint.load(folder / "gemma").network
    experts = network.backbone.model.encoder.language_model.layers[0].experts
    whole = experts.gate_up_proj.numel()
    spread_(network)
    part = experts.gate_up_proj.to_local().numel()
    is_one = network.backbone.model.decoder.layers[0].experts is experts
    (folder / f"held-{rank}.json").write_text(json.dumps([whole, part, is_one]))
    odd = plan(folder, "whisper", stages=(stage("ctc", {"projector": 1e-3}, batches=3, diffusion=0.0),))
    try:
        train(odd, folder / "odd")
    except RecipeError as error:
        (folder / f"error-{rank}").write_text(str(error))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store: FeatureStore) -> Path:
    """A folder with the same runs by one process and by two."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "store").symlink_to(store.folder)
    checkpoint.save(folder / "whisper", random_model())
    gemma_folder(folder)
    write_clips(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_board", lambda out: None)
        for kind in ("whisper", "gemma"):
            train(plan(folder, kind), folder / f"one-{kind}")
    torch.multiprocessing.spawn(work, args=(port, folder), nprocs=2)
    return folder


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(out: Path) -> dict[str, Tensor]:
    return checkpoint.read_weights(out / "model" / "model.safetensors")


def assert_alike(one: Path, two: Path) -> None:
    """The same losses, norms and weights, but for the order in which numbers were added."""
    a, b = log_of(one), log_of(two)
    assert [e["step"] for e in a] == [e["step"] for e in b]
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in ("ctc", "ar", "diffusion", "norm", "rate", "rows"):
            if name in left:
                rounded = 1.5e-3 if name == "norm" else 1.5e-4  # one unit of the last place that is logged
                assert right[name] == pytest.approx(left[name], rel=1e-5, abs=rounded), (name, left["step"])
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        gaps = (second[name] - value).abs()
        # Adam divides a gradient by its own size: of one that is nearly 0 it is the rounding that shows, on some CPUs.
        assert gaps.max() < 1e-4, name
        assert (gaps > 1e-5 + 1e-4 * value.abs()).float().mean() < 0.002, name


@pytest.mark.parametrize(
    ("one", "two"), [("one-whisper", "two-whisper"), ("one-gemma", "two-gemma"), ("one-gemma", "spread")]
)
def test_two_processes_make_the_run_of_one(runs: Path, one: str, two: str) -> None:
    assert_alike(runs / one, runs / two)
    start = checkpoint.read_weights(runs / one.removeprefix("one-") / "model.safetensors")
    moved = [n for n, v in weights(runs / two).items() if not torch.equal(v, start[n])]
    assert any("projector" in n for n in moved), "it did train"


def test_a_sharded_state_goes_on_with_one_process(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = runs / "stopped"
    parts = sorted(f.name for f in (out / "state.shards").iterdir())
    assert [p for p in parts if p.endswith(".distcp")] == ["__0_0.distcp", "__1_0.distcp"], "each wrote its own"
    assert not (out / "state.pt").exists()
    saved = load_state(out / "state.pt")
    assert saved is not None and (saved["place"]["stage"], saved["place"]["step"]) == (1, 1)
    monkeypatch.setattr(loop, "_board", lambda out: None)
    train(plan(runs, "whisper"), out)
    assert_alike(runs / "one-whisper", out)
    assert (out / "state.pt").exists() and not (out / "state.shards").exists()


def test_a_spread_run_that_was_stopped_is_the_one_that_was_not_bit_for_bit(runs: Path) -> None:
    whole, stopped = weights(runs / "spread"), weights(runs / "spread-stopped")
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())
    assert [e["step"] for e in log_of(runs / "spread-stopped")] == [1, 2, 3], "no step was made twice"
    for one, other in zip(log_of(runs / "spread"), log_of(runs / "spread-stopped"), strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}


def test_each_process_holds_half_of_what_is_spread(runs: Path) -> None:
    for rank in range(2):
        whole, part, is_one = json.loads((runs / f"held-{rank}.json").read_text())
        assert part == whole / 2
        assert is_one, "both stacks read one module"


def test_batches_must_be_shared_evenly(runs: Path) -> None:
    for rank in range(2):
        assert "step of 3 batches can't be shared by 2" in (runs / f"error-{rank}").read_text()


def test_a_gemma_learns_and_saves_its_adapter_alone(runs: Path) -> None:
    before = checkpoint.read_weights(runs / "gemma" / "model.safetensors")
    after = weights(runs / "one-gemma")
    assert before.keys() == after.keys()
    assert all("lora_" in name or name.startswith("projector.") for name in after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("encoder" in n and "lora_" in n for n in changed) and any(".decoder." in n for n in changed)
    assert set(log_of(runs / "one-gemma")[0]) >= {"ctc", "ar", "diffusion"}
    assert checkpoint.load(runs / "one-gemma" / "model").config.backbone == "gemma"
    saved = load_state(runs / "one-gemma" / "state.pt")
    assert saved is not None and not any(
        name.startswith("backbone") and "lora" not in name for name in saved["network"]
    )


def test_a_step_of_two_batches_is_not_two_steps(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_board", lambda out: None)
    alone = plan(runs, "whisper", stages=(stage("ctc", {"projector": 1e-2}, batches=1, diffusion=0.0),))
    train(alone, tmp_path / "alone")
    assert log_of(tmp_path / "alone")[0]["rows"] < log_of(runs / "one-whisper")[0]["rows"]
    assert log_of(tmp_path / "alone")[0]["ctc"] != log_of(runs / "one-whisper")[0]["ctc"]


@pytest.mark.parametrize("kind", ["whisper", "gemma"])
def test_recomputing_saves_memory_and_changes_no_gradient(runs: Path, kind: str) -> None:
    from conftest import random_speech

    held, gradients = [], []
    for is_recomputed in (False, True):
        network: Any = checkpoint.load(runs / kind).network
        network.projector.requires_grad_(True)
        if is_recomputed:
            recompute_(network)
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            cache = network.prefill(random_speech([64, 40]), torch.tensor([0, 1]))
            canvas = torch.arange(16).expand(2, -1)
            loss = network.denoise(canvas, cache, lengths=torch.tensor([16, 16])).square().mean()
            if kind == "whisper":  # whose canvas hears the projector through hints alone, which start at nothing
                loss = loss + network.ctc_logits(random_speech([64, 40])).square().mean()
        loss.backward()
        held.append(sum(kept))
        gradients.append([p.grad.clone() for p in network.projector.parameters() if p.grad is not None])
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert kind == "whisper" or held[1] < 0.9 * held[0]


def test_spreading_is_for_many_and_for_gemma(runs: Path) -> None:
    with pytest.raises(OptionError, match="accelerate launch"):
        spread_(checkpoint.load(runs / "gemma").network)
    with pytest.raises(OptionError, match="gemma backbone"):
        spread_(random_model().network)


def test_a_save_that_was_cut_short_leaves_the_one_before(tmp_path: Path) -> None:
    team = Team()
    assert (team.count, team.is_first, list(team.share(3))) == (1, True, [0, 1, 2])
    assert team.mean({"a": 0.5}) == {"a": 0.5}
    place = tmp_path / "state.pt"
    assert load_state(place) is None
    save_state(place, {"optimiser": None, "place": {"step": 1}}, team)
    (tmp_path / "state.part").write_bytes(b"half")
    saved = load_state(place)
    assert saved is not None and saved["place"]["step"] == 1


def test_letters_of_the_texts_are_known() -> None:
    assert set("".join(SAYS)) <= set(LETTERS) | {" "}


def test_a_quantised_gemma_learns_too(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(loop, "_board", lambda out: None)
    monkeypatch.setattr(loop, "_look", lambda *_: {})
    train(plan(runs, "gemma", precision="int8"), tmp_path)
    before, after = checkpoint.read_weights(runs / "gemma" / "model.safetensors"), weights(tmp_path)
    assert {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])} == {"projector", "backbone"}
    assert log_of(tmp_path)[0]["diffusion"] == pytest.approx(log_of(runs / "one-gemma")[0]["diffusion"], rel=0.05)
    assert log_of(tmp_path)[0]["diffusion"] != log_of(runs / "one-gemma")[0]["diffusion"]


def test_a_new_adapter_starts_on_a_bare_language_model(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffasr.model.adapter.WHISPER", str(runs / "ear"))
    cpu = torch.device("cpu")
    assert kind_of(str(runs / "language")) == "diffusion_gemma"
    models = [start(runs / "language", device=cpu, precision="float32", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (m.network.state_dict() for m in models)
    assert all(torch.equal(v, again[n]) for n, v in first.items())
    changed = {n for n, v in first.items() if not torch.equal(v, other[n])}
    assert changed and all("lora_A" in n or n.startswith("projector.") for n in changed)
    assert models[0].config.backbone == "gemma" and models[0].config.encoder.mode == "whole"
    with pytest.raises(RecipeError, match="rank 16: set lora_rank to it, got 2"):
        add_lora(models[0].network, 2)


def test_what_a_model_hears_decides_what_it_trains_on(runs: Path, store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"whole can't train on .*store"):
        train(plan(runs, "gemma", manifests=(), features=(store.folder,)), tmp_path)


def test_training_without_accelerate_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(OptionError, match="pip install 'diffasr"):
        Team()
