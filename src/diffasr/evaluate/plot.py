"""The figures of ``evaluate.report`` in, pictures out: error by steps, speed, language and length of recording, error
of the drafts, confidence against correctness, and the curves of a training run.

The same figures make the same bytes. What was not measured is not drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffasr.errors import OptionError
from diffasr.text import LANGUAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "ctc": "#555555", "ctc_beam": "#999933", "ar": "#117733", "ar_ctc": "#44AA99", "diffusion": "#CC6677",
    "seeded": "#332288", "vote": "#DDCC77", "whisper": "#88CCEE",
}  # fmt: skip
STYLES = ("-", "--", ":", "-.")


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the plots as PNG into ``folder`` and return their paths; raises OptionError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise OptionError("plots need matplotlib: pip install 'diffasr[evaluate]'") from error
    made = []
    for name, panels in _pictures(report).items():
        wide = 1.5 if name in ("error-by-language", "error-by-duration") else 1.0
        figure = Figure(figsize=(6.4 * wide, 4.4 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        for place, (title, fill) in enumerate(panels, 1):
            axes = figure.add_subplot(len(panels), 1, place)
            axes.set_ylabel(f"CER in percent (normaliser: {report['normaliser']})")
            fill(axes)
            axes.set_title(title, fontsize=10)
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120, metadata={"Software": None})
        made.append(path)
    return made


def _pictures(report: Mapping[str, Any]) -> dict[str, list[tuple[str, Callable[["Axes"], None]]]]:
    """Title and content of the panels of each picture: a panel a set."""
    kinds = {"error-by-steps": _by_steps, "error-by-speed": _by_speed, "error-by-language": _by_language}
    for name, key, fill in (
        ("error-by-duration", "durations", _by_duration),
        ("draft-error-by-step", "drafts", _by_draft),
        ("reliability", "confidence", _reliability),
    ):
        if any(report["systems"][found["system"]]["is_headline"] for found in report[key]):
            kinds[name] = fill
    pictures: dict[str, list[tuple[str, Callable[[Axes], None]]]] = {
        name: [(data, partial(fill, report=report, data=data)) for data in report["sets"]]
        for name, fill in kinds.items()
    }
    if report["training"]:
        parts = {"losses": ("losses in training", _losses), "rates": ("CER on dev in training", _rates)}
        pictures["training"] = [
            (title, partial(fill, training=report["training"])) for key, (title, fill) in parts.items()
            if report["training"][key]
        ]  # fmt: skip
    return pictures


def _means(report: Mapping[str, Any], data: str) -> dict[str, float]:
    """Mean CER over languages of each system, in percent."""
    return {m["system"]: 100 * m["cer"] for m in report["means"] if m["set"] == data and m["cer"] is not None}


def _families(known: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Systems that differ in their steps alone: what they have in common, a style of line, and their names."""
    families: dict[str, list[str]] = {}
    styles: dict[str, int] = {}
    for name, system in known.items():
        common = name.replace(f"-{system['steps']}", "", 1) if system["steps"] is not None else system["decoder"]
        families.setdefault(common, []).append(name)
    found = []
    for common, mine in families.items():
        decoder = known[mine[0]]["decoder"]
        number = styles[decoder] = styles.get(decoder, -1) + 1
        found.append((common, STYLES[number % len(STYLES)], mine))
    return found


def _by_steps(axes: "Axes", report: Mapping[str, Any], data: str) -> None:
    """A curve a diffusion decoder; decoders without steps are level lines."""
    means, known = _means(report, data), report["systems"]
    styles: dict[str, int] = {}
    for name, mean in means.items():
        decoder = known[name]["decoder"]
        if known[name]["steps"] is None:
            number = styles[decoder] = styles.get(decoder, -1) + 1
            axes.axhline(mean, color=COLOURS[decoder], linestyle=STYLES[number % len(STYLES)], label=name)
    for family, line, mine in _families({n: known[n] for n in means if known[n]["steps"] is not None}):
        points = sorted((known[n]["steps"], means[n]) for n in mine)
        colour = COLOURS[known[mine[0]]["decoder"]]
        axes.plot([p[0] for p in points], [p[1] for p in points], f"o{line}", color=colour, label=family)
        axes.set_xscale("log", base=2)
    steps = sorted({s["steps"] for s in known.values() if s["steps"] is not None})
    axes.set_xticks(steps, [str(s) for s in steps])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps, at most; mean over languages")


def _by_speed(axes: "Axes", report: Mapping[str, Any], data: str) -> None:
    """A point a system, diffusion decoders joined by their steps."""
    means, known = _means(report, data), report["systems"]
    timed = {n: m for n, m in means.items() if known[n]["rtfx"] is not None}
    for family, dashes, mine in _families({n: known[n] for n in timed}):
        speeds, rates = [known[n]["rtfx"] for n in mine], [timed[n] for n in mine]
        line = f"o{dashes}" if known[mine[0]]["steps"] is not None else "s"
        axes.plot(speeds, rates, line, color=COLOURS[known[mine[0]]["decoder"]], label=family)
        for name, speed, rate in zip(mine, speeds, rates, strict=True):
            label = str(known[name]["steps"]) if known[name]["steps"] is not None else name
            axes.annotate(label, (speed, rate), fontsize=7, xytext=(3, 3), textcoords="offset points")
    if timed:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("RTFx: seconds of audio a second of processing; mean over languages")


def _by_language(axes: "Axes", report: Mapping[str, Any], data: str) -> None:
    """Bars of the headline systems with their 95 % intervals by utterance."""
    scores = [s for s in report["scores"] if s["set"] == data and s["cer"] and s["language"] in LANGUAGES]
    names = [n for n, s in report["systems"].items() if s["is_headline"] and any(n == r["system"] for r in scores)]
    codes = [code for code in LANGUAGES if any(s["language"] == code for s in scores)]
    width, seen = 0.8 / max(1, len(names)), dict[str, int]()
    for number, name in enumerate(names):
        mine = {s["language"]: s["cer"] for s in scores if s["system"] == name}
        places = [p for p, code in enumerate(codes) if code in mine]
        bars: Sequence[dict[str, float]] = [mine[codes[p]] for p in places]
        decoder = report["systems"][name]["decoder"]
        seen[decoder] = seen.get(decoder, -1) + 1
        axes.bar(
            [p + (number + 0.5) * width - 0.4 for p in places], [100 * b["value"] for b in bars], width,
            color=COLOURS[decoder], alpha=1 / (1 + 0.4 * seen[decoder]), label=name, capsize=2,
            yerr=[[max(0.0, 100 * (b["value"] - b["low"])) for b in bars],
                  [max(0.0, 100 * (b["high"] - b["value"])) for b in bars]],
        )  # fmt: skip
    axes.set_xticks(range(len(codes)), codes)
    axes.set_xlabel("language; bars are 95 % intervals by utterance")


def _headline(report: Mapping[str, Any], key: str, data: str) -> list[Mapping[str, Any]]:
    """What the report holds under ``key`` of the headline systems on a set."""
    return [f for f in report[key] if f["set"] == data and report["systems"][f["system"]]["is_headline"]]


def _by_duration(axes: "Axes", report: Mapping[str, Any], data: str) -> None:
    """A point a bin of length with its 95 % interval by utterance."""
    found = _headline(report, "durations", data)
    bins = sorted({(d["from"], d["to"]) for d in found}, key=lambda b: b[0])
    names = list(dict.fromkeys(d["system"] for d in found))
    for number, name in enumerate(names):
        mine = [(bins.index((d["from"], d["to"])), d["cer"]) for d in found if d["system"] == name]
        axes.errorbar(
            [place + 0.06 * (number - (len(names) - 1) / 2) for place, _ in mine],
            [100 * c["value"] for _, c in mine],
            yerr=[[max(0.0, 100 * (c["value"] - c["low"])) for _, c in mine],
                  [max(0.0, 100 * (c["high"] - c["value"])) for _, c in mine]],
            color=COLOURS[report["systems"][name]["decoder"]], linestyle=STYLES[number % len(STYLES)],
            marker="o", markersize=4, capsize=2, label=name,
        )  # fmt: skip
    most = [max(d["recordings"] for d in found if d["from"] == start) for start, _ in bins]
    spans = [f"{start}–{end} s" if end else f"{start} s and more" for start, end in bins]
    axes.set_xticks(range(len(bins)), [f"{span}\n{n} recordings" for span, n in zip(spans, most, strict=True)])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("length of recording, all languages pooled; bars are 95 % intervals by utterance")


def _by_draft(axes: "Axes", report: Mapping[str, Any], data: str) -> None:
    """A curve a system: the text after each step, and as a star what was written."""
    for found in _headline(report, "drafts", data):
        colour = COLOURS[report["systems"][found["system"]]["decoder"]]
        rates = [100 * rate for rate in found["cer"] if rate is not None]
        axes.plot(range(1, len(rates) + 1), rates, "o-", color=colour, markersize=4, label=found["system"])
        if found["final"] is not None:
            axes.plot([len(rates)], [100 * found["final"]], "*", color=colour, markersize=10)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step within a decode; star: what was written; mean over languages")


def _reliability(axes: "Axes", report: Mapping[str, Any], data: str) -> None:
    """A curve a system, all languages pooled; on the dotted line the two would agree."""
    pooled = {f["system"]: f for f in _headline(report, "confidence", data)}  # the last of a system is the pooled one
    axes.plot([0, 100], [0, 100], ":", color="#999999")
    for name, found in pooled.items():
        bins = [b for b in found["bins"] if b["words"]]
        axes.plot(
            [100 * b["confidence"] for b in bins], [100 * b["accuracy"] for b in bins], "o-", markersize=4,
            color=COLOURS[report["systems"][name]["decoder"]], label=f"{name}, ECE {100 * found['ece']:.1f} points",
        )  # fmt: skip
    axes.set_xlabel("mean probability of the words of a bin, in percent")
    axes.set_ylabel(f"right words in percent (normaliser: {report['normaliser']})")


def _losses(axes: "Axes", training: Mapping[str, Any]) -> None:
    """A curve a loss; it breaks where a stage does not have it."""
    _curves(axes, training, "losses", 1.0)
    axes.set_yscale("log")
    axes.set_ylabel("loss, mean over some steps")


def _rates(axes: "Axes", training: Mapping[str, Any]) -> None:
    _curves(axes, training, "rates", 100.0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mean CER over languages in percent (normaliser: basic)")


def _curves(axes: "Axes", training: Mapping[str, Any], key: str, scale: float) -> None:
    for name, curve in training[key].items():
        colour = COLOURS[name.removeprefix("cer_")]
        axes.plot([p[0] for p in curve], [scale * p[1] for p in curve], color=colour, label=name.replace("_", " "))
    for stage in training["stages"]:
        axes.axvline(stage["after"], color="#999999", linestyle=":")
        axes.annotate(stage["name"], (stage["after"], 1), xycoords=("data", "axes fraction"), fontsize=7,
                      xytext=(3, -9), textcoords="offset points")  # fmt: skip
    axes.set_xlabel("steps, all stages")
