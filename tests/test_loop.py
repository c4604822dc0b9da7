"""The training loop: stopping changes nothing, what is named trains and the rest does not, and it does learn."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TIMES, random_model, write_store
from torch import Tensor

from diffasr.errors import RecipeError
from diffasr.evaluate.store import score_store
from diffasr.model import checkpoint
from diffasr.model.network import Speech
from diffasr.text import Tokenizer
from diffasr.train import loop
from diffasr.train.data import FeatureStore
from diffasr.train.loop import part_of, train
from diffasr.train.lora import add_lora, merge_lora
from diffasr.train.stages import Recipe, Stage

CTC = {"name": "ctc", "rates": {"projector": 1e-3}, "diffusion": 0.0, "ctc": 1.0}
DENOISE = {"name": "denoise", "rates": {"conditioning": 1e-3, "decoder": 1e-3}, "ar": 0.3, "draft_share": 0.5}
LORA = {"name": "lora", "rates": {"lora": 1e-2, "embedding": 1e-4}, "lora_rank": 2}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tensorboard files, and the signal handlers of before afterwards."""
    monkeypatch.setattr(loop, "_board", lambda out: None)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "init"
    checkpoint.save(folder, random_model())
    return folder


def stage(base: dict[str, Any], steps: int, **changes: Any) -> Stage:
    return Stage(**(base | {"steps": steps, "seconds": 3.0, "warmup": 2, "ema": 0.5} | changes))


def recipe(init: Path, store: FeatureStore, *stages: Stage, **changes: Any) -> Recipe:
    base: dict[str, Any] = {"evaluate_every": 10**6, "evaluate_count": 1, "save_every": 10**6, "seed": 5}
    return Recipe(name="r", init=init, features=(store.folder,), dev=store.folder, stages=stages, **(base | changes))


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(folder).network.state_dict()


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stops", [[4], [8], [3, 6]], ids=str)
def test_a_run_that_was_stopped_equals_one_that_was_not(
    init: Path, store: FeatureStore, tmp_path: Path, stops: list[int]
) -> None:
    plan = recipe(init, store, stage(CTC, 4, muon=True), stage(DENOISE, 4, mask=0.5), stage(LORA, 3))
    torch.manual_seed(1)
    whole = train(plan, tmp_path / "whole")
    for number, steps in enumerate(stops):
        torch.manual_seed(100 + number)  # the outside dice are no part of a run
        assert train(plan, tmp_path / "parts", stop_after=steps) == tmp_path / "parts" / "model"
        assert not (tmp_path / "parts" / "model").exists()
    parts = train(plan, tmp_path / "parts")
    assert same(weights(whole), weights(parts))
    logs = [[{k: v for k, v in e.items() if k not in TIMES} for e in log_of(tmp_path / n)] for n in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [e["step"] for e in logs[0]] == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]


def test_a_run_that_fell_between_two_stages_goes_on(
    init: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe(init, store, stage(CTC, 3), stage(LORA, 3))
    whole = weights(train(plan, tmp_path / "whole"))
    prepare = loop._prepare

    def fall(*args: Any) -> Any:
        if args[1].name == "lora":
            raise MemoryError
        return prepare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_prepare", fall)
        with suppress(MemoryError):
            train(plan, tmp_path / "fell")
    assert same(whole, weights(train(plan, tmp_path / "fell")))


def test_running_a_finished_run_again_changes_nothing(init: Path, store: FeatureStore, tmp_path: Path) -> None:
    plan = recipe(init, store, stage(CTC, 2))
    before = weights(train(plan, tmp_path))
    assert not same(before, weights(init))
    assert same(before, weights(train(plan, tmp_path)))
    assert same(before, weights(tmp_path / "ctc")), "the stage's own checkpoint is the same"
    assert len(log_of(tmp_path)) == 2


def test_sigterm_saves_and_the_same_call_goes_on(
    init: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe(init, store, stage(DENOISE, 6))
    whole = weights(train(plan, tmp_path / "whole"))
    calls: list[int] = []
    plain = loop.losses

    def losses(*args: Any, **options: Any) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **options)

    monkeypatch.setattr(loop, "losses", losses)
    train(plan, tmp_path / "parts")
    assert len(log_of(tmp_path / "parts")) == 3, "the step in hand is finished, and no other begun"
    assert same(whole, weights(train(plan, tmp_path / "parts")))


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        (CTC, {"projector"}),
        (CTC | {"rates": {"embedding": 1e-3}}, {"embedding"}),
        (DENOISE | {"rates": {"conditioning": 1e-3}}, {"conditioning"}),
        (DENOISE, {"conditioning", "decoder"}),
    ],
    ids=lambda x: "+".join(sorted(x)) if isinstance(x, set) else "",
)
def test_only_the_named_parts_change(
    init: Path, store: FeatureStore, tmp_path: Path, base: dict[str, Any], parts: set[str]
) -> None:
    before, after = weights(init), weights(train(recipe(init, store, stage(base, 3)), tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {part_of(name) for name in changed} == parts
    assert before.keys() == after.keys()


def test_tokens_of_one_script_may_learn_while_labels_and_others_rest(store: FeatureStore, tmp_path: Path) -> None:
    plain = random_model()
    tokenizer = Tokenizer(plain.tokenizer.backend, letters=1)
    config = replace(plain.config, projector=replace(plain.config.projector, letters=1))
    before = checkpoint.Model(network=checkpoint.build(config, tokenizer).eval(), tokenizer=tokenizer, config=config)
    checkpoint.save(tmp_path / "init", before)
    speech = Speech(frames=store.frames(0)[None], lengths=torch.tensor([len(store.frames(0))]))
    changes = {"rates": {"decoder": 1e-3, "embedding": 1e-3}, "diffusion": 0.0}
    plan = recipe(tmp_path / "init", store, stage(DENOISE | changes, 3, scripts=("LATIN", "HANGUL")))
    after = checkpoint.load(train(plan, tmp_path / "run"))
    is_moved = (after.network.decoder.embed_tokens.weight != before.network.decoder.embed_tokens.weight).any(1)
    assert is_moved.any()
    assert not is_moved[before.network.alphabet].any()
    heard = [model.network.ctc_logits(speech) for model in (before, after)]
    torch.testing.assert_close(*heard, rtol=0, atol=0)
    with pytest.raises(RecipeError, match="LATN"):
        train(recipe(tmp_path / "init", store, stage(DENOISE | changes, 3, scripts=("LATN",))), tmp_path / "typo")


def test_lora_ends_as_plain_weights_of_the_decoders_attention(init: Path, store: FeatureStore, tmp_path: Path) -> None:
    plan = recipe(init, store, stage(LORA | {"rates": {"lora": 1e-2}}, 3))
    before, after = weights(init), weights(train(plan, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight")
    assert before.keys() == after.keys()
    assert changed == {n for n in before if n.startswith("decoder.layers.") and n.endswith(matrices)}
    for name in changed:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-3) <= 2


def test_merging_an_adapter_does_not_change_what_it_computes() -> None:
    network = random_model().network
    plain = {k: v.clone() for k, v in network.state_dict().items()}
    add_lora(network, 2)
    layer = network.decoder.layers[0].self_attn.q_proj
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    base = torch.nn.functional.linear(x, plain["decoder.layers.0.self_attn.q_proj.weight"], layer.base_layer.bias)
    torch.testing.assert_close(layer(x), base)  # no effect before training
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    adapted = layer(x)
    merge_lora(network)
    assert network.state_dict().keys() == plain.keys()
    assert not torch.allclose(adapted, base, atol=1e-3)
    torch.testing.assert_close(network.decoder.layers[0].self_attn.q_proj(x), adapted, rtol=1e-4, atol=1e-4)
    merge_lora(network)  # nothing left to do


def test_average_weights_are_the_running_mean_and_step_aside() -> None:
    values = [torch.randn(3, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    parameter = torch.nn.Parameter(values[0].clone())
    average = [values[0].clone()]
    expected = values[0].double()
    for value in values[1:]:
        parameter.data.copy_(value)
        loop._average_(average, [parameter], 0.8)
        expected = 0.8 * expected + 0.2 * value.double()
    torch.testing.assert_close(average[0].double(), expected, rtol=1e-5, atol=1e-6)
    with loop._averaged([parameter], average):
        torch.testing.assert_close(parameter.data.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(parameter.data, values[-1])


def test_a_stage_ends_with_the_average(init: Path, store: FeatureStore, tmp_path: Path) -> None:
    ends = [
        weights(train(recipe(init, store, stage(CTC, 4, ema=ema)), tmp_path / str(ema)))["projector.linear.weight"]
        for ema in (0.0, 0.9)
    ]
    start = weights(init)["projector.linear.weight"]
    assert (ends[1] - start).norm() < (ends[0] - start).norm(), "an average lags behind"


def test_rates_rise_in_a_line_and_fall_in_a_cosine() -> None:
    plan = stage(CTC, 100, warmup=10, final_rate=0.1)
    optimiser = torch.optim.AdamW([{"params": [torch.zeros(1)], "peak": 0.5, "lr": 0.5}])
    shares = []
    for step in range(101):
        shares.append(loop._set_rates(optimiser, plan, loop.Place(step=step)))
        assert optimiser.param_groups[0]["lr"] == pytest.approx(0.5 * shares[-1])
    assert shares[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert shares[10] == 1
    assert shares[55] == pytest.approx(0.55)
    assert shares[100] == pytest.approx(0.1)
    assert shares[10:] == sorted(shares[10:], reverse=True)


def test_a_stage_may_end_by_the_clock_and_its_rates_fall_with_it(
    init: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = stage(CTC, 10_000, warmup=0, final_rate=0.0, minutes=0.05)
    optimiser = torch.optim.AdamW([{"params": [torch.zeros(1)], "peak": 0.5, "lr": 0.5}])
    rates = [loop._set_rates(optimiser, plan, loop.Place(step=9, spent=spent)) for spent in (0.0, 1.5, 3.0)]
    assert rates == pytest.approx([1.0, 0.5, 0.0], abs=1e-5)
    looked: list[float] = []

    def look(*_: object) -> dict[str, float]:
        time.sleep(1.0)
        looked.append(time.perf_counter())
        return {"cer_ctc": 0.5}

    monkeypatch.setattr(loop, "_look", look)
    began = time.perf_counter()
    train(recipe(init, store, plan, evaluate_every=2), tmp_path)
    entries = log_of(tmp_path)
    assert 1 <= len(entries) < 10_000
    assert 2 <= len(looked) <= 5, "what a look takes counts too"
    assert looked[-1] - began >= 3.0
    assert "cer_ctc" in entries[-1], "its last step is looked at"


def test_every_parameter_belongs_to_one_part() -> None:
    names = [name for name, _ in random_model().network.named_parameters()]
    assert {part_of(n) for n in names} == {"encoder", "projector", "conditioning", "embedding", "decoder", "frozen"}
    assert {n for n in names if part_of(n) == "conditioning" and "conditioning" not in n} == {"decoder.future"}
    assert all((part_of(n) == "frozen") == n.startswith("habits") for n in names)


def test_a_gradient_that_is_not_finite_stops_the_run(
    init: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.losses
    monkeypatch.setattr(loop, "losses", lambda *a, **k: {n: v * float("nan") for n, v in plain(*a, **k).items()})
    with pytest.raises(RecipeError, match="ctc step 0: the gradient is nan"):
        train(recipe(init, store, stage(CTC, 2)), tmp_path)


def test_looks_are_taken_when_asked_and_at_the_end(
    init: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[str, list[int]]] = []

    def score(model: Any, dev: FeatureStore, numbers: Any, *, decoder: str) -> dict[str, float]:
        looked.append((decoder, list(numbers)))
        return {"en": 0.5, "de": 0.25}

    monkeypatch.setattr(loop, "score_store", score)
    train(recipe(init, store, stage(CTC, 5), evaluate_every=2, evaluate_count=4), tmp_path / "a")
    assert looked == [("ctc", [0, 2, 4, 6])] * 3
    assert [e.get("cer_ctc") for e in log_of(tmp_path / "a")] == [None, 0.375, None, 0.375, 0.375]
    looked.clear()
    train(recipe(init, store, stage(DENOISE, 1)), tmp_path / "b", overfit=3)
    assert looked == [("ctc", [0, 1, 2]), ("diffusion", [0, 1, 2])], "overfitting is scored on what it saw"
    looked.clear()
    train(recipe(init, store, stage(DENOISE, 1, diffusion=0.0)), tmp_path / "c", overfit=1)
    assert looked == [("ctc", [0]), ("ar", [0])], "what the stage trains is what is written with"


def test_nothing_to_train_on_is_a_recipe_error(init: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    silent = write_store(tmp_path / "silent", [("a", "en")], tokenizer)
    index = silent.folder / "index.jsonl"
    index.write_text(index.read_text(encoding="utf-8").replace('"text": "a"', '"text": ""'), encoding="utf-8")
    for overfit in (0, 2):
        with pytest.raises(RecipeError, match="no utterance that fits"):
            train(recipe(init, silent, stage(CTC, 2)), tmp_path / "out", overfit=overfit)


def test_a_few_utterances_are_learned_by_heart(init: Path, store: FeatureStore, tmp_path: Path) -> None:
    teach = stage(CTC | {"rates": {"projector": 1e-2}}, 120, seconds=20.0, ctc_extra=1000)
    rates = {"conditioning": 5e-3, "decoder": 3e-3}
    write = stage(DENOISE | {"rates": rates, "ar": 0.0}, 120, seconds=20.0, slack=0, blur=0.3, full_share=0.3)
    out = train(recipe(init, store, teach, write, autocast=False), tmp_path)
    log = log_of(tmp_path)
    for name in ("ctc", "diffusion"):
        values = [entry[name] for entry in log if name in entry]
        assert sum(values[-5:]) / 5 < 0.1 * values[0]
    model = checkpoint.load(out)
    for decoder in ("ctc", "diffusion"):
        rates = score_store(model, store, range(8), decoder=decoder)  # type: ignore[arg-type]
        assert max(rates.values()) < 0.1, decoder
