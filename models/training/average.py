"""An exponential moving average of the weights while they train. torch from the first line: import it late.

What moves around the optimum at a constant learning rate is nearer to it on average (Polyak and Juditsky 1992). The
decay is warmed up, min(decay, (1 + t) / (10 + t)) after step t, so that a short run forgets its start.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """The average of some parameters, float32. decay: share that stays at each step, 0 <= decay < 1."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone().float() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Take in the weights after `step` (counted from 1)."""
        now = [p.detach().float() for p in parameters.values()]
        weight = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(list(self.values.values()), now, weight)

    @torch.no_grad()
    def copy_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Make the parameters hold the average."""
        for name, parameter in parameters.items():
            parameter.copy_(self.values[name])
