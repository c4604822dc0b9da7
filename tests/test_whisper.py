"""Whisper's decoder behind the Network interface: transformers' own when causal, a denoiser when not."""

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import MELS, VOCABULARY, WIDTH, random_model, random_speech, row_alone, tiny_tokenizer, tiny_whisper, wake
from torch import Tensor
from transformers.models.whisper.modeling_whisper import sinusoids as whisper_sinusoids

from diffasr.model.checkpoint import from_whisper
from diffasr.model.layers import Attention
from diffasr.model.loaded import Model
from diffasr.model.network import Cache, Speech
from diffasr.model.whisper import HANDICAP, HEARD, PACE, WhisperNetwork, sinusoids
from diffasr.text import LANGUAGES

LENGTHS = [40, 13, 27]
CANVAS = torch.tensor([12, 7, 9])


@pytest.fixture(scope="module")
def awake() -> Model:
    """A random model whose conditioning has weight."""
    return wake(random_model())


@pytest.fixture(scope="module")
def network(awake: Model) -> WhisperNetwork:
    return awake.network


@pytest.fixture(scope="module")
def speech() -> Speech:
    return random_speech(LENGTHS)


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def extras(rows: int = 3, size: int = 12) -> dict[str, Tensor]:
    """The previous step's logits and hints, both within every row's slots."""
    previous = torch.randn(rows, size, VOCABULARY, generator=torch.Generator().manual_seed(4))
    hints = torch.arange(size).clamp_max(3).repeat(rows, 1)
    hints[:, 5:] = -1
    return {"previous": previous, "hints": hints}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("languages", [[0, 1], [5, 2]])
def test_with_the_mask_on_it_is_transformers_whisper(whisper_folder, languages: list[int]) -> None:  # type: ignore[no-untyped-def]
    tokenizer = tiny_tokenizer()
    network = from_whisper(whisper_folder, tokenizer, [[i] for i in range(VOCABULARY)], name="x").network.eval()
    mel = torch.randn(2, MELS, 120, generator=torch.Generator().manual_seed(0))
    heard = network.hear(mel, torch.tensor([120, 120]))
    assert heard.lengths.tolist() == [60, 60]
    tokens = tokens_of(2, 6)
    prefix = torch.tensor([tokenizer.prefix(list(LANGUAGES)[i]) for i in languages])
    with torch.no_grad():
        cache = network.prefill(heard, torch.tensor(languages))
        ours = network.ar_logits(tokens, cache)
        theirs = tiny_whisper()(mel, decoder_input_ids=torch.cat((prefix, tokens), dim=1)).logits
        first = tiny_whisper()(mel, decoder_input_ids=prefix[:, :1]).logits[:, 0]
    assert ours.shape == (2, 7, VOCABULARY)
    close(ours, theirs[:, 3:])
    with torch.no_grad():
        found = network.prefill(heard, None)
    close(found.language_logits, first[:, list(tokenizer.languages.values())])


def test_the_future_is_hidden_from_ar_and_shown_to_the_denoiser(network: WhisperNetwork, speech: Speech) -> None:
    cache = network.prefill(speech, None)
    tokens, changed = tokens_of(3, 7), tokens_of(3, 7)
    changed[:, 4] = (tokens[:, 4] + 1) % VOCABULARY
    before, after = network.ar_logits(tokens, cache), network.ar_logits(changed, cache)
    assert torch.equal(before[:, :5], after[:, :5])
    assert ((before[:, 5:] - after[:, 5:]).abs().amax(2) > 1e-4).all()
    lengths = torch.tensor([7, 7, 7])
    moved = network.denoise(tokens, cache, lengths=lengths) - network.denoise(changed, cache, lengths=lengths)
    assert (moved.abs().amax(2) > 1e-4).all(), "every place sees every place"


def test_the_mask_is_let_go_and_not_torn_off(model: Model, speech: Speech) -> None:
    network, tokens, lengths = copy.deepcopy(model.network), tokens_of(3, 12), torch.tensor([12, 12, 12])
    other = tokens.clone()
    other[:, 9] = (tokens[:, 9] + 1) % VOCABULARY
    cache = network.prefill(speech, None)
    seen = []
    for future in (-1000.0, 0.0, HANDICAP / PACE):
        network.decoder.future.fill_(future)
        first, second = (network.denoise(canvas, cache, lengths=lengths) for canvas in (tokens, other))
        seen.append(float((first - second)[:, :9].abs().mean()))
        if future < 0:
            close(first, network.ar_logits(tokens[:, :-1], cache))
    assert seen[0] < 1e-6, "with the whole handicap, each place predicts the next as Whisper does"
    assert seen[0] < seen[1] < seen[2]
    view = network.decoder.view(0, torch.tensor([12, 5]), torch.zeros(2, 12, WIDTH))
    assert view.shape == (2, 2, 12, 12)
    assert view[0].abs().max() < 1e-5, "without it, every place counts alike"
    assert (view[1] == -torch.inf).sum() == 2 * 12 * 7


@pytest.mark.parametrize("row", range(3))
def test_a_row_of_a_batch_equals_the_row_alone(network: WhisperNetwork, speech: Speech, row: int) -> None:
    alone_speech, place = row_alone(speech, row), slice(row, row + 1)
    languages = torch.tensor([-1, 2, -1])
    cache, alone = network.prefill(speech, languages), network.prefill(alone_speech, languages[place])
    slots = int(alone.slots)
    assert torch.equal(cache.slots[place], alone.slots)
    assert torch.equal(cache.languages[place], alone.languages)
    close(cache.language_logits[place], alone.language_logits)
    close(cache.audio[place, :slots], alone.audio)
    close(cache.ctc[place, :slots], alone.ctc)
    close(network.ctc_logits(speech)[place, :slots], network.ctc_logits(alone_speech))
    size, canvas, more = int(CANVAS[row]), tokens_of(3, 12), extras()
    close(
        network.denoise(canvas, cache, lengths=CANVAS, **more)[place, :size],
        network.denoise(
            canvas[place, :size], alone, lengths=CANVAS[place], **{k: v[place, :size] for k, v in more.items()}
        ),
    )
    close(network.ar_logits(canvas, cache)[place], network.ar_logits(canvas[place], alone))


@pytest.mark.parametrize("row", range(2))
def test_hear_does_not_see_padding(network: WhisperNetwork, row: int) -> None:
    mel = torch.randn(2, MELS, 50, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([50, 21])
    together = network.hear(mel, lengths)
    alone = network.hear(mel[row : row + 1, :, : lengths[row]], lengths[row : row + 1])
    assert together.lengths[row] == alone.lengths[0] == alone.frames.shape[1]
    close(together.frames[row, : alone.lengths[0]], alone.frames[0])


def test_canvas_places_past_the_length_do_not_matter(network: WhisperNetwork, speech: Speech) -> None:
    cache, canvas, other = network.prefill(speech, None), tokens_of(3, 12), tokens_of(3, 12, seed=9)
    real = torch.arange(12) < CANVAS[:, None]
    mixed = torch.where(real, canvas, other)
    first, second = (network.denoise(c, cache, lengths=CANVAS) for c in (canvas, mixed))
    assert torch.equal(first[real], second[real])


def test_conditioning_does_nothing_before_training_and_something_after(model: Model, awake: Model) -> None:
    speech, canvas = random_speech(LENGTHS), tokens_of(3, 12)
    for name, value in extras().items():
        fresh, trained = model.network, awake.network
        plain = fresh.denoise(canvas, fresh.prefill(speech, None), lengths=CANVAS)
        given = fresh.denoise(canvas, fresh.prefill(speech, None), lengths=CANVAS, **{name: value})
        assert torch.equal(plain, given)
        cache = trained.prefill(speech, None)
        without, with_it = (trained.denoise(canvas, cache, lengths=CANVAS, **e) for e in ({}, {name: value}))
        assert (without - with_it).abs().max() > 1e-2


def test_no_hint_is_no_hint_and_a_hint_is_local(awake: Model, speech: Speech) -> None:
    network, canvas = awake.network, tokens_of(3, 12)
    cache = network.prefill(speech, None)
    none = torch.full((3, 12), -1)
    plain = network.denoise(canvas, cache, lengths=CANVAS)
    assert torch.equal(network.denoise(canvas, cache, lengths=CANVAS, hints=none), plain)
    conditioning, (first, second) = network.decoder.conditioning, none.new_tensor([[2, -1, 3], [2, 1, 3]]).split(1)
    a, b = (conditioning.from_hints(cache.audio[:1], hints, 4) for hints in (first, second))
    assert ((a - b).abs().sum(2) > 0).tolist() == [[False, True, False]]
    assert a[0, 1].abs().sum() == 0


def test_hints_and_beliefs_teach_the_denoiser_but_not_the_projector() -> None:
    network = wake(random_model()).network.requires_grad_(True)
    cache = network.prefill(random_speech(LENGTHS), None)
    network.denoise(tokens_of(3, 12), cache, lengths=CANVAS, **extras()).square().mean().backward()
    assert all(p.grad is None for p in network.projector.parameters())
    grads = [p.grad for p in network.decoder.conditioning.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def flat(cache: Cache) -> list[Tensor]:
    keys_values, mask = cache.memory
    plain = [cache.audio, cache.slots, cache.ctc, cache.languages, cache.language_logits, mask]
    return plain + [tensor for pair in keys_values for tensor in pair]


def test_denoising_leaves_the_cache_and_its_arguments_alone(network: WhisperNetwork, speech: Speech) -> None:
    cache, canvas, more = network.prefill(speech, None), tokens_of(3, 12), extras()
    kept = copy.deepcopy([*flat(cache), canvas, *more.values()])
    first = network.denoise(canvas, cache, lengths=CANVAS, **more)
    network.ar_logits(canvas, cache)
    assert all(torch.equal(a, b) for a, b in zip(kept, [*flat(cache), canvas, *more.values()], strict=True))
    assert torch.equal(first, network.denoise(canvas, cache, lengths=CANVAS, **more)), "the same again"


def test_the_speech_is_listened_to_once(
    network: WhisperNetwork, speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain: Callable[[Attention, Tensor], tuple[Tensor, Tensor]] = Attention.keys_values

    def counted(self: Attention, source: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(source.shape[1])
        return plain(self, source)

    monkeypatch.setattr(Attention, "keys_values", counted)
    cache = network.prefill(speech, None)
    assert sizes.count(LENGTHS[0]) == len(network.decoder.layers)
    sizes.clear()
    for _ in range(3):
        network.denoise(tokens_of(3, 12), cache, lengths=CANVAS)
    assert LENGTHS[0] not in sizes, "steps look only at their own canvas"


def test_select_takes_rows_in_any_order_and_twice(network: WhisperNetwork, speech: Speech) -> None:
    rows, canvas = torch.tensor([2, 0, 2]), tokens_of(3, 12)
    cache = network.prefill(speech, torch.tensor([0, 3, 5]))
    chosen = network.select(cache, rows)
    assert all(torch.equal(a[rows], b) for a, b in zip(flat(cache), flat(chosen), strict=True))
    close(
        network.denoise(canvas[rows], chosen, lengths=CANVAS[rows]),
        network.denoise(canvas, cache, lengths=CANVAS)[rows],
    )
    assert network.select(cache, rows[:0]).ctc.shape[0] == 0


@pytest.mark.parametrize("steps", [[0, 1, 1, 1, 1, 1], [0, 3, 2], [5], [2, 1, 2]])
def test_reading_token_by_token_is_reading_at_once(network: WhisperNetwork, speech: Speech, steps: list[int]) -> None:
    cache, text = network.prefill(speech, None), tokens_of(3, 5)
    whole, read, done = network.ar_logits(text, cache), network.ar_reader(cache), 0
    for count in steps:
        logits = read(text[:, done : done + count])
        done += count
        close(logits, whole[:, done])


def test_a_known_language_is_taken_and_an_unknown_one_found(network: WhisperNetwork, speech: Speech) -> None:
    found = network.prefill(speech, None)
    assert found.language_logits.shape == (3, len(LANGUAGES))
    assert torch.equal(found.languages, found.language_logits.argmax(1))
    told = (found.languages + 1) % len(LANGUAGES)
    told[1] = -1
    cache = network.prefill(speech, told)
    assert torch.equal(cache.languages, torch.where(told < 0, found.languages, told))
    assert torch.equal(cache.language_logits[1], found.language_logits[1])
    assert cache.language_logits.softmax(1)[[0, 2], told[[0, 2]]].tolist() == [1, 1], "who is told does not look"
    assert torch.equal(network.prefill(speech, cache.languages).languages, cache.languages)
    lengths = torch.tensor([12, 12, 12])
    moved = network.denoise(tokens_of(3, 12), cache, lengths=lengths) - network.denoise(
        tokens_of(3, 12), found, lengths=lengths
    )
    assert (moved.abs().amax((1, 2)) > 1e-4).tolist() == [True, False, True], "the canvas sees its language"


def test_what_ctc_hears_tells_of_the_language(network: WhisperNetwork, speech: Speech) -> None:
    """``habits`` move the languages by what each label counts times how often it was heard."""
    network = copy.deepcopy(network)
    before = network.prefill(speech, None)
    network.habits[3] = 1.0
    after = network.prefill(speech, None)
    moved = after.language_logits - before.language_logits
    close(moved[:, 3], HEARD * network.slots(speech).float())
    assert moved[:, [0, 1, 2, 4, 5]].abs().max() == 0
    network.habits[3] = 100.0
    assert network.prefill(speech, None).languages.tolist() == [3, 3, 3]


def test_ctc_has_labels_of_its_own(network: WhisperNetwork, speech: Speech) -> None:
    network, whole = copy.deepcopy(network), network.ctc_logits(speech)
    network.alphabet = torch.tensor([5, 0, 9])
    close(network.ctc_logits(speech), whole[:, :, [5, 0, 9]])
    close(network.ctc_logits(speech, torch.tensor([2])), whole[:, :, [9]])


def test_ctc_goes_through_the_tied_embedding(network: WhisperNetwork, speech: Speech) -> None:
    logits = network.ctc_logits(speech)
    assert logits.shape == (3, 10, VOCABULARY)
    assert network.slots(speech).tolist() == [10, 4, 7]
    table = network.decoder.embed_tokens.weight
    close(logits, network.projector(speech.frames, speech.lengths) @ table.T)
    labels = torch.tensor([30, 2, 2, 17])
    close(network.ctc_logits(speech, labels), logits[:, :, labels])
    close(network.prefill(speech, None).ctc, logits)


def test_moments_are_told_in_whispers_own_position_code() -> None:
    close(sinusoids(torch.arange(50.0)[None], WIDTH)[0], whisper_sinusoids(50, WIDTH))


def test_a_hint_stands_in_the_middle_of_its_frames(awake: Model, speech: Speech) -> None:
    conditioning = awake.network.decoder.conditioning
    conditioning.hint.weight.data.zero_()[:, WIDTH:] = torch.eye(WIDTH)  # says when, and not what
    audio = awake.network.prefill(speech, None).audio[:1]
    slots = torch.arange(audio.shape[1])
    for frames in (1, 2, 4):
        when = conditioning.from_hints(audio, slots[None], frames)[0]
        each = whisper_sinusoids(frames * len(slots), WIDTH).unflatten(0, (len(slots), frames))
        middle = each[:, (frames - 1) // 2 : frames // 2 + 1].mean(1)
        assert (when - middle).abs().max() < 0.15
