"""What shapes the matrices of a checkpoint must have by its config."""

from collections.abc import Iterator

from diffasr.errors import ModelError
from diffasr.model.config import DecoderConfig, ModelConfig
from diffasr.runtime.weights import Weights

Named = Iterator[tuple[str, tuple[int, ...]]]


def check(weights: Weights, config: ModelConfig) -> None:
    """Raises ModelError with a table of what is missing or does not fit."""
    problems = []
    for name, shape in wanted(config):
        if name not in weights:
            problems.append(f"  missing {name} {shape}")
        elif weights.place(name).shape != shape:
            problems.append(f"  {name} is {weights.place(name).shape}, not {shape}")
    if problems:
        raise ModelError(f"the weights in {weights.path} do not fit their config:\n" + "\n".join(problems[:20]))


def wanted(config: ModelConfig) -> Named:
    """The matrices and tables, each with its shape."""
    ears, bridge, text = config.encoder, config.projector, config.decoder
    assert isinstance(text, DecoderConfig)
    yield "encoder.conv1.weight", (ears.width, ears.mels, 3)
    yield "encoder.conv2.weight", (ears.width, ears.width, 3)
    yield "encoder.embed_positions.weight", (ears.positions, ears.width)
    yield from _blocks("encoder.layers", ears.layers, ears.width, ears.hidden)
    for number in range(bridge.strides + bridge.steady):
        before = bridge.hidden if number else ears.width
        yield f"projector.convs.{number}.weight", (bridge.hidden, before, 3)
    yield "projector.linear.weight", (text.width, bridge.hidden)
    yield from _blocks("projector.layers", bridge.layers, text.width, 4 * text.width)
    yield "decoder.embed_tokens.weight", (text.vocabulary, text.width)
    yield "decoder.embed_positions.weight", (text.positions, text.width)
    yield from _blocks("decoder.layers", text.layers, text.width, text.hidden)
    yield from _listening("decoder.layers", text.layers, text.width, ears.width, "qkv")
    if text.draft:
        for name in ("before", "token"):
            yield f"decoder.drafter.{name}.weight", (text.width, text.width)
        yield from _blocks("decoder.drafter.layers", text.draft, text.width, text.hidden)
        yield from _listening("decoder.drafter.layers", text.draft, text.width, ears.width, "q")


def _blocks(name: str, count: int, width: int, hidden: int) -> Named:
    for number in range(count):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{name}.{number}.self_attn.{part}.weight", (width, width)
        yield f"{name}.{number}.fc1.weight", (hidden, width)
        yield f"{name}.{number}.fc2.weight", (width, hidden)


def _listening(name: str, count: int, width: int, heard: int, parts: str) -> Named:
    for number in range(count):
        for part in parts:
            yield f"{name}.{number}.encoder_attn.{part}_proj.weight", (width, width if part == "q" else heard)
        yield f"{name}.{number}.encoder_attn.out_proj.weight", (width, width)
