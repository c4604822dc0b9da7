"""Padded against natural encoding: error rates of autoregressive decoding, and what encoding costs.

    python benchmarks/encoding.py MANIFEST --model work/init [--count 10] [--threads 1]

With the untrained checkpoint of ``recipes/mini/prepare.py init`` the decoder is Whisper-base's own, which was trained
on padded audio only. ``cut``: encoded with the padding, which is then hidden from the decoder.
"""

import argparse
import time
from pathlib import Path

import torch

from diffasr.audio import load_audio, log_mel
from diffasr.comparisons import ar_texts
from diffasr.evaluate.score import error_rates
from diffasr.model import checkpoint
from diffasr.model.network import Speech
from diffasr.text import LANGUAGES
from diffasr.train.data import read_manifest


def main() -> None:
    """Decode ``count`` utterances a language three ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = checkpoint.load(args.model)
    pairs: dict[str, list[tuple[str, str, str]]] = {"natural": [], "padded": [], "cut": []}
    seconds = dict.fromkeys(pairs, 0.0)
    for code in LANGUAGES:
        chosen = [u for u in read_manifest(args.manifest) if u.language == code][: args.count]
        for utterance in chosen:
            audio = load_audio(utterance.audio)
            for way, found in pairs.items():
                mel = torch.from_numpy(log_mel(audio, padded=way != "natural"))[None]
                started = time.perf_counter()
                with torch.inference_mode():
                    speech = model.network.hear(mel, torch.tensor([mel.shape[2]]))
                seconds[way] += time.perf_counter() - started
                if way == "cut":
                    real = torch.tensor([len(audio) // 320])
                    speech = Speech(frames=speech.frames[:, : int(real)], lengths=real)
                text = ar_texts(model, speech, torch.tensor([list(LANGUAGES).index(code)]), most=60)[0]
                found.append((utterance.text, text, code))
    print(f"| encoding | {' | '.join(LANGUAGES)} | encoder time |\n{'|---' * (len(LANGUAGES) + 2)}|")
    for way, found in pairs.items():
        rates = error_rates(found)
        cells = " | ".join(f"{100 * rate:.1f}" for rate in rates.values())
        print(f"| {way} | {cells} | {seconds[way] / seconds['natural']:.1f} x |")


if __name__ == "__main__":
    main()
