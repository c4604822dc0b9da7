"""What the recipe costs in GPU-hours, from counted operations. Nothing here was measured on a GPU.

python recipes/gemma-26b/cost.py [--utterances 714000] [--epochs 10]
"""

import argparse

from diffasr.model.config import EncoderConfig
from diffasr.model.gemma import full_text_config
from diffasr.train.flops import Shapes, ear_flops, step_flops

EAR = EncoderConfig(mels=80, width=768, heads=12, layers=12, hidden=3072)  # Whisper-small
PEAK = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}
"""Dense bfloat16 TFLOP/s of the makers' data sheets."""
SHARES = (0.1, 0.2, 0.4)
"""Of the peak; 0.4 is what well-kept dense training reaches, experts of width 704 will be below."""


def operations(*, recompute: bool) -> float:
    """Of one utterance: a canvas of 96 places, which a text of 40 tokens gets beside longer ones."""
    shapes = Shapes(prompt=188 + 20, slots=188, canvas=96, text=40, recompute=recompute)
    return step_flops(full_text_config(), shapes) + ear_flops(EAR)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=714_000, help="of an epoch; prepare.py prints them")
    parser.add_argument("--epochs", type=float, default=10.0)
    args = parser.parse_args(argv)
    for recompute in (False, True):
        each = operations(recompute=recompute)
        total = each * args.utterances * args.epochs
        print(f"\nrecompute = {str(recompute).lower()}: {each / 1e12:.2f} TFLOP an utterance, {total:.2e} in all")
        print("| GPU-hours, counted and not measured |" + "".join(f" at {share:.0%} of the peak |" for share in SHARES))
        print("|---" * (1 + len(SHARES)) + "|")
        for name, peak in PEAK.items():
            hours = [total / (peak * 1e12 * share) / 3600 for share in SHARES]
            print(f"| {name} ({peak:g} TFLOP/s) |" + "".join(f" {value:,.0f} |" for value in hours))


if __name__ == "__main__":
    main()
