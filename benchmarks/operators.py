"""Which operators take the time of a transcription: ONNX Runtime's profiler on each graph of the mini.

python benchmarks/operators.py [AUDIO] [--model mini] [--language de] [--threads 2] [--calls 10] [--rows 10]
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import onnxruntime

from diffasr import loading
from diffasr.audio import load_audio
from diffasr.transcribe import Transcriber

SAMPLE = Path(__file__).parent.parent / "samples" / "de.opus"


def main() -> None:
    """Profile and print a table a graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="?", default=str(SAMPLE))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--language", default="de")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--rows", type=int, default=10, help="operators a table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sessions = watched(Path(folder))
        asr = Transcriber(loading.load(args.model, threads=args.threads))
        clip = load_audio(args.audio)
        for _ in range(args.calls):
            asr.transcribe(clip, language=args.language)
        for session in sessions:
            table(session, args.calls, args.rows)


def watched(folder: Path) -> list[onnxruntime.InferenceSession]:
    """The sessions that are made from now on, each of which is profiled."""
    made, options, session = [], onnxruntime.SessionOptions, onnxruntime.InferenceSession

    def profiled() -> onnxruntime.SessionOptions:
        wanted = options()
        wanted.enable_profiling, wanted.profile_file_prefix = True, str(folder / "profile")
        return wanted

    def noted(*known: object, **more: object) -> onnxruntime.InferenceSession:
        made.append(session(*known, **more))
        return made[-1]

    onnxruntime.SessionOptions, onnxruntime.InferenceSession = profiled, noted
    return made


def table(session: onnxruntime.InferenceSession, calls: int, rows: int) -> None:
    """Milliseconds a transcription by operator."""
    names = ", ".join(output.name for output in session.get_outputs()[:3])
    spent, count = Counter[str](), Counter[str]()
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
            count[event["args"]["op_name"]] += 1
    total = sum(spent.values())
    if not total:
        return
    print(f"\nto {names}: {total / 1e3 / calls:.2f} ms\n| operator | ms | share | calls |\n{'|---' * 4}|")
    for name, microseconds in spent.most_common(rows):
        print(f"| {name} | {microseconds / 1e3 / calls:.3f} | {microseconds / total:.0%} | {count[name] // calls} |")


if __name__ == "__main__":
    main()
