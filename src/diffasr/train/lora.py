"""Low-rank adapters on a decoder's attention, through peft, and back into plain weights.

Source: arXiv:2106.09685 section 4.1.
"""

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from diffasr.errors import RecipeError

TARGETS = r".*decoder\.layers\..*\.(q_proj|k_proj|v_proj|out_proj)"


def add_lora(network: nn.Module, rank: int) -> None:
    """Wrap q, k, v and o of every decoder layer of a whisper, without effect until trained. A gemma has its own."""
    held = {m.r["default"] for m in network.modules() if isinstance(m, LoraLayer)}
    if held - {rank}:
        raise RecipeError(f"the checkpoint has LoRA of rank {held.pop()}: set lora_rank to it, got {rank}")
    if held:
        return
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), network)


def merge_lora(network: nn.Module) -> None:
    """Add the adapters to the weights that they sit on and take them away; nothing to do without adapters."""
    for name, module in [(n, m) for n, m in network.named_modules() if isinstance(m, LoraLayer)]:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module.get_base_layer())
