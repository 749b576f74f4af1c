"""ORBIT: fine-tuned weights are kept near the checkpoint they came from, so that less of it is forgotten.

Forgetting grows with the distance between the fine-tuned and the first weights; ORBIT tracks that distance and averages
the two whenever it exceeds a threshold (seed 000, "ORBIT", abstract). Here: the distance is relative,
||w - w0|| / ||w0|| over all parameters together, and the average w0 + a (w - w0) has the weight `a` that brings the
distance back to SHARE of the threshold. The optimizer's moments stay. torch from the first line: import it late.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.training.shards import placed, whole
from plumline.errors import InputError

SHARE = 0.5
"""Of the threshold, what is left of the distance after an averaging: at the threshold it is the plain mean."""
EVERY = 10
"""Steps between two looks at the distance (and one look at the end)."""


class Orbit:
    """The anchor of some parameters, and the threshold of their distance.

    folder: safetensors of the anchor. limit: largest relative distance, None measures only. Raises InputError if the
    anchor lacks a parameter or has it in another shape.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Tensor], limit: float | None) -> None:
        stored: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            stored |= load_file(path)
        self.limit = limit
        self.anchor: dict[str, Tensor] = {}
        squares = 0.0
        for name, parameter in parameters.items():
            value = stored.get(name)
            if value is None or value.shape != parameter.shape:
                found = "no such weight" if value is None else f"shape {tuple(value.shape)}"
                raise InputError(f"anchor {folder}: {found} for {name} {tuple(parameter.shape)}; give the model's own")
            squares += float(torch.linalg.vector_norm(value.float())) ** 2
            self.anchor[name] = placed(value.float(), parameter)
        self.norm = math.sqrt(squares) or 1.0

    @torch.no_grad()
    def distance(self, parameters: Mapping[str, Tensor]) -> float:
        """||w - w0|| / ||w0||."""
        norms = [torch.linalg.vector_norm(p.detach().float() - self.anchor[name]) for name, p in parameters.items()]
        return math.sqrt(sum(float(whole(norm)) ** 2 for norm in norms)) / self.norm

    @torch.no_grad()
    def hold(self, parameters: Mapping[str, Tensor]) -> tuple[float, bool]:
        """The distance, and whether it was above the limit: then the weights were averaged, and it is the new one."""
        distance = self.distance(parameters)
        if self.limit is None or distance <= self.limit:
            return distance, False
        share = SHARE * self.limit / distance
        for name, parameter in parameters.items():
            anchor = self.anchor[name]
            parameter.copy_(anchor + share * (parameter.float() - anchor))
        return self.distance(parameters), True
