"""What turns gradients into steps: AdamW for all, or Muon for the matrices and AdamW for the rest.

Muon makes all directions of a matrix's step equally long. It is torch's; its steps are scaled to be as large as
AdamW's, so that one learning rate suits both (arXiv:2502.16982 section 2.2).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from diffasr.errors import RecipeError

MATRICES = ("encoder", "projector", "decoder")
"""Parts whose matrices Muon is for: those between layers. An embedding is a table of rows, each for itself."""


class Optimiser:
    """One optimiser or two, as one: groups, steps and state."""

    def __init__(
        self, parts: Mapping[str, Sequence[nn.Parameter]], rates: Mapping[str, float], *, decay: float, muon: bool
    ) -> None:
        """parts: by name, in the order in which their parameters shall be listed. rates: the peak of each."""
        matrices = {
            part: [p for p in held if muon and part in MATRICES and p.ndim == 2] for part, held in parts.items()
        }
        others = {part: [p for p in held if not any(p is m for m in matrices[part])] for part, held in parts.items()}
        self.made: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(_groups(others, rates), betas=(0.9, 0.98), weight_decay=decay, fused=True)
        ]
        if any(matrices.values()):
            if not hasattr(torch.optim, "Muon"):
                raise RecipeError(
                    f"muon needs torch 2.9 or newer, this is {torch.__version__}: update it, or leave it out"
                )
            self.made.append(
                torch.optim.Muon(_groups(matrices, rates), weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both, each with its ``peak`` rate."""
        return [group for one in self.made for group in one.param_groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learn."""
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for one in self.made:
            one.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move every parameter."""
        for one in self.made:
            one.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """What each remembers."""
        return [one.state_dict() for one in self.made]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from there. Raises RecipeError where they are not of these optimisers."""
        if not isinstance(states, list) or len(states) != len(self.made):
            raise RecipeError(
                f"state.pt was written with other optimisers than the {len(self.made)} of this recipe (another value "
                "of muon, or an older diffasr): start in a new folder, or set muon as it was"
            )
        for one, state in zip(self.made, states, strict=True):
            one.load_state_dict(state)


def _groups(parts: Mapping[str, Sequence[nn.Parameter]], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Without decay for an embedding: a row that is never read would shrink all the same."""
    out: list[dict[str, Any]] = []
    for part, held in parts.items():
        if held:
            out.append({"params": [*held], "peak": rates[part], "lr": rates[part]})
            out[-1] |= {"weight_decay": 0.0} if part == "embedding" else {}
    return out
