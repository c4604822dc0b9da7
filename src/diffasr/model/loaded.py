"""A checkpoint as it was loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diffasr.errors import ModelError
from diffasr.letters import Letters
from diffasr.model.config import ModelConfig
from diffasr.text import Tokenizer

if TYPE_CHECKING:
    from diffasr.model.gemma import GemmaNetwork
    from diffasr.model.whisper import WhisperNetwork

Precision = Literal["auto", "full", "float32", "bfloat16", "int8", "int4"]
"""full: float32 on the CPU, bfloat16 on anything else; what training and export need. auto: the same, but a whisper
backbone on a CPU is run without torch, in int8 where its file is. int8 and int4: of a gemma's weights, sums as in full;
of a whisper backbone int8 takes the products too."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network with the tokenizer and the config that belong to it."""

    network: Any
    """A torch module behind the interface ``network.Network``, or what runs without torch: ``runtime.network``."""
    tokenizer: Tokenizer
    config: ModelConfig
    letters: Letters | None = None
    """What the language models of letters know; they count with CTC, where it has short labels."""

    @property
    def module(self) -> "WhisperNetwork | GemmaNetwork":
        """The network as a torch module; raises ModelError where it is none."""
        if not hasattr(self.network, "state_dict"):
            raise ModelError(f"{self.config.name} was loaded to run without torch: load it with precision='full'")
        found: WhisperNetwork | GemmaNetwork = self.network
        return found
