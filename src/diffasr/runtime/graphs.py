"""The graphs of a whisper backbone, each of one clip alone: nothing is padded, and no clip has neighbours.

The same network as in ``model.whisper``, for the case that no place of a text sees a later one; a test compares them.
"""

from collections.abc import Sequence

from onnx import TensorProto

from diffasr.model.config import HEAD_WIDTH, DecoderConfig, ModelConfig
from diffasr.places import FEW
from diffasr.runtime.graph import Graph


def encoder(graph: Graph, config: ModelConfig) -> None:
    """``mel`` (mels, M) to ``frames`` (ceil(M / 2), S)."""
    ears = config.encoder
    mel = graph.op("Unsqueeze", graph.input("mel", [ears.mels, "M"]), graph.constant([0]))
    weight, bias = graph.floats("encoder.conv1.weight"), graph.floats("encoder.conv1.bias")
    x = graph.op("Conv", mel, weight, bias, kernel_shape=[3], pads=[1, 1])
    x = graph.op("Transpose", graph.op("Squeeze", graph.gelu(x), graph.constant([0])), perm=[1, 0])  # (M, S)
    x = graph.gelu(graph.convolution(x, "encoder.conv2", stride=2))
    size = graph.op("Shape", x, start=0, end=1)
    places = graph.op("Slice", graph.floats("encoder.embed_positions.weight"), graph.constant([0]), size)
    x = graph.op("Add", x, places)
    for number in range(ears.layers):
        x = block(graph, x, f"encoder.layers.{number}", heads=ears.heads)
    graph.output("frames", graph.norm(x, "encoder.layer_norm"))


def labeller(graph: Graph, config: ModelConfig, alphabet: Sequence[int]) -> None:
    """``frames`` (T, S) to ``labels`` (N, C), CTC's logits. alphabet: (C,) the tokens that CTC labels."""
    bridge, text = config.projector, _decoder(config)
    x = graph.input("frames", ["T", config.encoder.width])
    x = graph.norm(x, "projector.norm") if "norm" in bridge.norms else x
    for number, stride in enumerate([2] * bridge.strides + [1] * bridge.steady):
        x = graph.gelu(graph.convolution(x, f"projector.convs.{number}", stride=stride))
    x = graph.linear(x, "projector.linear")
    for number in range(bridge.layers):
        x = block(graph, x, f"projector.layers.{number}", heads=max(1, text.width // HEAD_WIDTH))
    x = graph.norm(x, "projector.out_norm") if "out_norm" in bridge.norms else x
    graph.output("labels", graph.scores(x, "decoder.embed_tokens", alphabet))


def listener(graph: Graph, config: ModelConfig) -> None:
    """``frames`` (T, S) to the decoder's keys and values of them, ``speech.k.0`` and so on, (1, H, T, D / H) each."""
    frames = graph.input("frames", ["T", config.encoder.width])
    for number in range(_decoder(config).layers):
        for part in "kv":
            name = f"decoder.layers.{number}.encoder_attn.{part}_proj"
            graph.output(f"speech.{part}.{number}", graph.split(graph.linear(frames, name), _decoder(config).heads))


def decoder(graph: Graph, config: ModelConfig) -> None:
    """Embeddings ``x`` (n, D) of a text's next tokens, and what stands before them, to ``hidden`` (n, D).

    past.k.0 (P, D) and so on are keys and values of what stands before, those that come out belong to the new places.
    ``speech`` is the listener's; ``sight`` (1, 1, n, P + n) is added to the scores.
    """
    text = _decoder(config)
    x, sight = graph.input("x", ["n", text.width]), graph.input("sight", [1, 1, "n", "P+n"])
    for number in range(text.layers):
        x = _reading(graph, x, f"decoder.layers.{number}", number, text, sight)
    graph.output("hidden", graph.norm(x, "decoder.layer_norm"))


def head(graph: Graph, config: ModelConfig) -> None:
    """``hidden`` (n, D) to the likeliest ``tokens`` and their log-probabilities, ``scores``, (n, FEW) each, and to
    ``total`` (n, 1), the logarithm of the sum of the exponentials of all logits."""
    text = _decoder(config)
    logits = graph.scores(graph.input("hidden", ["n", text.width]), "decoder.embed_tokens", None)  # (n, V)
    few = graph.constant([min(FEW, text.vocabulary)])
    scores, tokens = graph.ops("TopK", 2, graph.op("LogSoftmax", logits, axis=-1), few, axis=-1)
    first = [graph.op("Slice", part, *map(graph.constant, ([0], [1], [1]))) for part in (tokens, scores)]
    graph.output("scores", scores)
    graph.output("tokens", tokens, kind=TensorProto.INT64)
    graph.output("total", graph.op("Sub", graph.op("GatherElements", logits, first[0], axis=1), first[1]))


def vocabulary(graph: Graph, config: ModelConfig) -> None:
    """``hidden`` (n, D) to ``logits`` (n, V)."""
    hidden = graph.input("hidden", ["n", _decoder(config).width])
    graph.output("logits", graph.scores(hidden, "decoder.embed_tokens", None))


def block(graph: Graph, x: str, name: str, *, heads: int) -> str:
    """(T, D) through one block of an encoder."""
    normed = graph.norm(x, f"{name}.self_attn_layer_norm")
    parts = _three(graph, normed, f"{name}.self_attn")
    x = _added(graph, x, graph.attention(*parts, heads=heads), f"{name}.self_attn.out_proj")
    return _thought(graph, x, name)


def _reading(graph: Graph, x: str, name: str, number: int, text: DecoderConfig, sight: str) -> str:
    """(n, D) through one block of a decoder, behind a past of its own."""
    normed = graph.norm(x, f"{name}.self_attn_layer_norm")
    queries, *own = _three(graph, normed, f"{name}.self_attn")
    whole = []
    for part, new in zip("kv", own, strict=True):
        graph.output(f"new.{part}.{number}", new)
        whole.append(graph.op("Concat", graph.input(f"past.{part}.{number}", ["P", text.width]), new, axis=0))
    heard = graph.attention(queries, *whole, heads=text.heads, added=sight)
    x = _added(graph, x, heard, f"{name}.self_attn.out_proj")
    normed = graph.norm(x, f"{name}.encoder_attn_layer_norm")
    shape = (1, text.heads, "T", text.width // text.heads)
    speech = [graph.input(f"speech.{part}.{number}", shape) for part in "kv"]
    heard = graph.attention(graph.linear(normed, f"{name}.encoder_attn.q_proj"), *speech, heads=text.heads)
    x = _added(graph, x, heard, f"{name}.encoder_attn.out_proj")
    return _thought(graph, x, name)


def _three(graph: Graph, x: str, name: str) -> list[str]:
    """Queries, keys and values of one input."""
    joint = graph.linear(x, *(f"{name}.{part}_proj" for part in "qkv"))
    return graph.ops("Split", 3, joint, axis=-1, num_outputs=3)


def _added(graph: Graph, x: str, heard: str, name: str) -> str:
    return graph.op("Add", x, graph.linear(heard, name))


def _thought(graph: Graph, x: str, name: str) -> str:
    inner = graph.gelu(graph.linear(graph.norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"))
    return _added(graph, x, inner, f"{name}.fc2")


def _decoder(config: ModelConfig) -> DecoderConfig:
    assert isinstance(config.decoder, DecoderConfig)
    return config.decoder
