"""What shapes the tensors of a checkpoint must have by its config."""

from collections.abc import Iterator

from diffasr.errors import ModelError
from diffasr.model.config import DecoderConfig, ModelConfig
from diffasr.runtime.weights import Weights
from diffasr.text import LANGUAGES

Named = Iterator[tuple[str, tuple[int, ...]]]


def check(weights: Weights, config: ModelConfig, labels: int) -> None:
    """Raises ModelError with a table of what is missing or does not fit. labels: of CTC."""
    problems = []
    for name, shape in wanted(config, labels):
        if name not in weights:
            problems.append(f"  missing {name} {shape}")
        elif weights.place(name).shape != shape:
            problems.append(f"  {name} is {weights.place(name).shape}, not {shape}")
        elif weights.place(name).kind == "I8" and f"{name}.scale" not in weights:
            problems.append(f"  missing {name}.scale ({shape[0]},)")
    if problems:
        raise ModelError(f"the weights in {weights.path} do not fit their config:\n" + "\n".join(problems[:20]))


def wanted(config: ModelConfig, labels: int) -> Named:
    """All that is used, each with its shape."""
    ears, bridge, text = config.encoder, config.projector, config.decoder
    assert isinstance(text, DecoderConfig)
    yield from _layer("encoder.conv1", ears.width, ears.mels, 3)
    yield from _layer("encoder.conv2", ears.width, ears.width, 3)
    yield "encoder.embed_positions.weight", (ears.positions, ears.width)
    yield from _blocks("encoder.layers", ears.layers, ears.width, ears.hidden)
    yield from _norm("encoder.layer_norm", ears.width)
    for number in range(bridge.strides + bridge.steady):
        yield from _layer(f"projector.convs.{number}", bridge.hidden, bridge.hidden if number else ears.width, 3)
    yield from _layer("projector.linear", text.width, bridge.hidden)
    yield from _blocks("projector.layers", bridge.layers, text.width, 4 * text.width)
    for name, width in (("norm", ears.width), ("out_norm", text.width)):
        if name in bridge.norms:
            yield from _norm(f"projector.{name}", width)
    yield "habits", (len(LANGUAGES), labels)
    yield "decoder.embed_tokens.weight", (text.vocabulary, text.width)
    yield "decoder.embed_positions.weight", (text.positions, text.width)
    yield from _blocks("decoder.layers", text.layers, text.width, text.hidden)
    yield from _listening("decoder.layers", text.layers, text.width, ears.width)
    yield from _norm("decoder.layer_norm", text.width)


def _layer(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, width: int) -> Named:
    yield from _layer(name, width)


def _blocks(name: str, count: int, width: int, hidden: int) -> Named:
    for number in range(count):
        yield from _norm(f"{name}.{number}.self_attn_layer_norm", width)
        for part in ("q_proj", "v_proj", "out_proj"):
            yield from _layer(f"{name}.{number}.self_attn.{part}", width, width)
        yield f"{name}.{number}.self_attn.k_proj.weight", (width, width)  # keys have no bias
        yield from _norm(f"{name}.{number}.final_layer_norm", width)
        yield from _layer(f"{name}.{number}.fc1", hidden, width)
        yield from _layer(f"{name}.{number}.fc2", width, hidden)


def _listening(name: str, count: int, width: int, heard: int) -> Named:
    """heard: of the frames."""
    for number in range(count):
        yield from _norm(f"{name}.{number}.encoder_attn_layer_norm", width)
        yield from _layer(f"{name}.{number}.encoder_attn.q_proj", width, width)
        yield from _layer(f"{name}.{number}.encoder_attn.out_proj", width, width)
        yield f"{name}.{number}.encoder_attn.k_proj.weight", (width, heard)
        yield from _layer(f"{name}.{number}.encoder_attn.v_proj", width, heard)
