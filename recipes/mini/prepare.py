"""What is around the training of the mini: the checkpoint it starts from, its sound or features, its export.

python recipes/mini/prepare.py init --whisper work/whisper/transformers --shared ../shared --out work/init
python recipes/mini/prepare.py decode MANIFEST --out work/wav/NAME [--workers 16]
python recipes/mini/prepare.py features MANIFEST --init work/init --out work/features/NAME [--padded]
python recipes/mini/prepare.py blend runs/mini/model --init work/init --encoder 0.6 --decoder 0.75 --out runs/mini-blend
python recipes/mini/prepare.py deepen runs/mini-blend --layers 4 --out runs/mini-deep
python recipes/mini/prepare.py letters --shared ../shared --out work/letters.safetensors
python recipes/mini/prepare.py export runs/mini/model --letters work/letters.safetensors --out src/diffasr/assets/mini
"""

import argparse
import json
import multiprocessing
import unicodedata
from dataclasses import replace
from pathlib import Path

import soundfile
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Backend

from diffasr.audio import SAMPLE_RATE_HZ, load_audio
from diffasr.letters import Letters
from diffasr.model import checkpoint
from diffasr.model.config import BLIND, HANDICAP, PACE
from diffasr.text import LANGUAGES, Tokenizer
from diffasr.train import vocabulary
from diffasr.train.data import FeatureStore, read_manifest
from diffasr.train.letters import build
from diffasr.train.loop import part_of

MERGES = 1000
"""New tokens for Hindi."""
MIN_COUNT = 5
"""How often the text must use a token for it to stay."""
HINDI_LINES = 20_000
DECODING = {
    "en": {"guidance": 0.5},
    "es": {"guidance": 0.5},
    "hi": {"caution": 1.0, "letter_bonus": 1.6},
    "zh": {"caution": 0.8, "letter_weight": 0.2, "letter_bonus": 0.4},
}
"""Hindi and Mandarin are what the denoiser knows worst. Of Mandarin there is the least text. Guidance costs a second
reading, and helps in English and Spanish."""


def init(whisper: Path, shared: Path, out: Path) -> None:
    """Cut and grow the tokenizer, and write Whisper's weights under it as an untrained checkpoint."""
    lines = [row.text for row in read_manifest(shared / "speech" / "train.jsonl")]
    hindi: list[str] = []
    texts: dict[str, list[str]] = {}
    for code in LANGUAGES:
        raw = (shared / "text" / f"{code}.txt").read_text(encoding="utf-8").split("\n")
        text = [line for line in map(tidy, raw) if line]
        lines += text
        texts[code] = text
        if code == "hi":
            hindi = text[:HINDI_LINES]
    original = whisper / "tokenizer.json"
    spec = vocabulary.build(original, lines, hindi, merges=MERGES, min_count=MIN_COUNT)
    old = vocabulary.words_together(json.loads(original.read_text(encoding="utf-8")))
    tokenizer = Tokenizer(Backend.from_str(json.dumps(spec)), letters=checkpoint.PROJECTOR.letters)
    model = checkpoint.from_whisper(whisper, tokenizer, vocabulary.sources(old, spec), name="mini")
    model.network.habits.copy_(vocabulary.habits(tokenizer, texts))
    checkpoint.save(out, model)
    print(f"{out}: {tokenizer.size} tokens")


def letters(shared: Path, out: Path) -> None:
    """Write the model of letters of six languages, from all text, what is said in the training speech included, but the
    sentences of the dev set."""
    said, held_out = (read_manifest(shared / "speech" / f"{part}.jsonl") for part in ("train", "dev"))
    unread = {"", *(tidy(row.text) for row in held_out)}
    texts = {}
    for code in LANGUAGES:
        lines = (shared / "text" / f"{code}.txt").read_text(encoding="utf-8").split("\n")
        lines += dict.fromkeys(row.text for row in said if row.language == code)
        texts[code] = [line for line in map(tidy, lines) if line not in unread]
    made = build(texts)
    save_file(made.state(), out)
    print(f"{out}: order {made.order}, {out.stat().st_size / 1e6:.1f} MB")


def tidy(line: str) -> str:
    """A line as it is learned from: composed, and without joiners, which few keyboards write."""
    return unicodedata.normalize("NFC", line).replace("\u200c", "").replace("\u200d", "").strip()


def decode(manifest: Path, out: Path, *, workers: int) -> None:
    """Write a manifest's recordings as 16-bit WAV: a GPU hears them so often that decoding would hold it up."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    names = [f"{number:06d}.wav" for number in range(len(rows))]
    sources = [manifest.parent / row["audio_filepath"] for row in rows]
    with multiprocessing.Pool(workers) as pool:
        pool.starmap(_decode, zip(sources, [out / name for name in names], strict=True), chunksize=32)
    lines = [
        json.dumps(row | {"audio_filepath": name}, ensure_ascii=False) for row, name in zip(rows, names, strict=True)
    ]
    (out / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{out}: {len(rows)} recordings")


def _decode(source: Path, target: Path) -> None:
    soundfile.write(target, load_audio(source).clip(-1, 1), SAMPLE_RATE_HZ, subtype="PCM_16")


def features(manifest: Path, start: Path, out: Path, *, padded: bool, threads: int = 2) -> None:
    """Run the frozen encoder over a manifest; go on where an interrupted run stopped."""
    torch.set_num_threads(threads)
    encoder = checkpoint.load(start).network.encoder
    store = FeatureStore.build(read_manifest(manifest), encoder, out, padded=padded)
    hours = sum(u.duration for u in store.utterances) / 3600
    print(f"{out}: {len(store.utterances)} utterances, {hours:.2f} hours")


@torch.no_grad()
def blend(model: Path, start: Path, out: Path, *, encoder: float, decoder: float) -> None:
    """Lead weights back towards those that training began with; ``encoder`` and ``decoder``: how much stays, of 1.

    What was learned on little speech cost some of what was known of much. Half way there is most of both.

    Source: arXiv:2109.01903 section 3, weight-space ensembles.
    """
    learned, before = checkpoint.load(model, precision="float32"), checkpoint.load(start, precision="float32")
    known = before.network.state_dict()
    kept = {"encoder": encoder, "decoder": decoder}  # embedding, conditioning and projector stay as they were learned
    for name, value in learned.network.state_dict().items():
        share = kept.get(part_of(name), 1.0)
        if share < 1:
            value.lerp_(known[name], 1 - share)
    checkpoint.save(out, learned)


@torch.no_grad()
def deepen(model: Path, out: Path, *, layers: int) -> None:
    """Give the projector ``layers`` transformer layers. New ones come last and hand on what they read, at first."""
    found = checkpoint.load(model, precision="float32")
    config = replace(found.config, projector=replace(found.config.projector, layers=layers))
    torch.manual_seed(0)
    grown = checkpoint.build(config, found.tokenizer)
    missing, _ = grown.load_state_dict(found.network.state_dict(), strict=False)
    for name in missing:
        if name.endswith(("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")):
            grown.get_parameter(name).zero_()
    checkpoint.save(out, replace(found, network=grown, config=config))
    print(f"{out}: {len(missing)} new tensors")


def export(model: Path, out: Path, *, grams: Path | None, bare: bool) -> None:
    """Write the shipped form: int8, with the model of letters and what goes with it. ``bare``: with the conditioning
    block at zero, as before training, and later places out of sight: CTC and the decoder then write a canvas together
    better (docs/log.md)."""
    found = checkpoint.load(model)
    if bare:
        decoder = found.network.decoder
        for layer in (decoder.conditioning.own, decoder.conditioning.belief, decoder.conditioning.hint):
            layer.weight.zero_()
        decoder.future.fill_((HANDICAP - BLIND) / PACE)
    if grams is not None:
        config = replace(found.config, decoding=DECODING)
        found = replace(found, config=config, letters=Letters.from_state(load_file(grams)))
    checkpoint.save(out, found, precision="int8")


def main() -> None:
    """Read the call and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("init")
    first.add_argument("--whisper", type=Path, required=True)
    first.add_argument("--shared", type=Path, required=True)
    grams = commands.add_parser("letters")
    grams.add_argument("--shared", type=Path, required=True)
    again = commands.add_parser("decode")
    again.add_argument("manifest", type=Path)
    again.add_argument("--workers", type=int, default=2)
    second = commands.add_parser("features")
    second.add_argument("manifest", type=Path)
    second.add_argument("--init", type=Path, required=True)
    second.add_argument("--padded", action="store_true", help="encode 30 s each, keep the real frames")
    second.add_argument("--threads", type=int, default=2)
    mixed = commands.add_parser("blend")
    mixed.add_argument("model", type=Path)
    mixed.add_argument("--init", type=Path, required=True)
    mixed.add_argument("--encoder", type=float, default=0.6)
    mixed.add_argument("--decoder", type=float, default=0.75)
    taller = commands.add_parser("deepen")
    taller.add_argument("model", type=Path)
    taller.add_argument("--layers", type=int, required=True)
    third = commands.add_parser("export")
    third.add_argument("model", type=Path)
    third.add_argument("--letters", type=Path, help="what the command letters wrote; without it none is shipped")
    third.add_argument("--bare", action="store_true", help="conditioning set to zero: see docs/log.md")
    for command in (first, grams, again, second, mixed, taller, third):
        command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jobs = {
        "init": lambda: init(args.whisper, args.shared, args.out),
        "letters": lambda: letters(args.shared, args.out),
        "decode": lambda: decode(args.manifest, args.out, workers=args.workers),
        "features": lambda: features(args.manifest, args.init, args.out, padded=args.padded, threads=args.threads),
        "blend": lambda: blend(args.model, args.init, args.out, encoder=args.encoder, decoder=args.decoder),
        "deepen": lambda: deepen(args.model, args.out, layers=args.layers),
        "export": lambda: export(args.model, args.out, grams=args.letters, bare=args.bare),
    }
    jobs[args.command]()


if __name__ == "__main__":
    main()
