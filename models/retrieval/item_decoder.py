"""The decoder of a model that reads one place an item: the prompt once, then the SID head alone.

Not a stage. It answers as `Decoder` does, so that a beam search, the free search and the certificate ask either. After
the prompt the backbone is not run again: what a beam may go on with follows from its own state and code.

Shapes: B requests, K tokens a request, W tokens of a place, D width, T tokens appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from models.language.item_model import ItemModel
from models.language.places import Places
from models.retrieval.decoder import Decoder, Prompt
from plumline.errors import InputError, PlumlineError


class ItemDecoder(Decoder):
    """hidden: (B, K, D), states of the head at the level of the codes that come next."""

    _model: ItemModel

    def __init__(self, model: ItemModel, prompts: Sequence[Places], device: torch.device | str = "cpu") -> None:
        """Run the prompts."""
        super().__init__(model, prompts, 0, device)
        question = [model.pad if prompt.asked is None else prompt.asked for prompt in prompts]
        self.hidden = model.ask(self.hidden, torch.tensor(question, device=device)[:, None])
        self._prompt_hidden = self.hidden
        self._levels: torch.Tensor | None = None

    def _read(self, prompts: Sequence[Places], longest: int, device: torch.device | str) -> dict[str, torch.Tensor]:
        width = max(max(prompt.sizes) for prompt in prompts)
        tokens_BPW = torch.full((len(prompts), longest, width), self._model.pad, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            sizes = torch.tensor(prompt.sizes)
            tokens = torch.tensor(prompt.token_ids[: len(prompt.token_ids) - prompt.question])
            inside = torch.arange(width) < sizes[:, None]
            tokens_BPW[row, longest - len(prompt) :][inside] = tokens
        return {"inputs_embeds": self._model.embed(tokens_BPW.to(device))}

    def log_probabilities(self, first: int, size: int, over_slice: bool) -> torch.Tensor:
        """Of the tokens first … first+size-1, (B, K, size): those of the level that comes next sum to 1, others have
        none (-inf), whatever `over_slice` says. Raises PlumlineError if the model yields no finite numbers."""
        model, level = self._model, self._depth
        logp_BKS = model.head.log_probabilities(level, self.hidden).to(self.score_type)
        if not torch.isfinite(logp_BKS.amax(-1)).all():
            raise PlumlineError("the model yields numbers that are not finite; its weights cannot be used, train again")
        begin = model.sid_base + model.offsets[level]
        if (first, size) == (begin, logp_BKS.shape[-1]):
            return logp_BKS
        found = logp_BKS.new_full((*logp_BKS.shape[:-1], size), -torch.inf)
        low, high = max(first, begin), min(first + size, begin + logp_BKS.shape[-1])
        if low < high:
            found[..., low - first : high - first] = logp_BKS[..., low - begin : high - begin]
        return found

    def append(self, parent_BK: torch.Tensor, token_BK: torch.Tensor) -> None:
        """Go on to the next level. parent_BK: place of each one's parent in `hidden`. token_BK: codes of this level."""
        state_BKD = self.hidden.gather(1, parent_BK[..., None].expand(-1, -1, self.hidden.shape[-1]))
        self.hidden = self._step(self._depth, state_BKD, token_BK)
        self._depth += 1

    def append_tree(self, token_BK: torch.Tensor, tree_BKT: torch.Tensor, depth_BK: torch.Tensor) -> None:
        """Run a tree of K tokens after the prompts; see `Decoder.append_tree`. Every request has as many a depth."""
        hidden = self._prompt_hidden.expand(-1, token_BK.shape[1], -1).clone()
        for depth in range(int(depth_BK.max()) + 1):
            mine = (depth_BK[0] == depth).nonzero().flatten()
            state = self._prompt_hidden.expand(-1, len(mine), -1)
            if depth:
                above = tree_BKT[:, mine] & (depth_BK == depth - 1)[:, None]
                parent = above.long().argmax(-1)
                state = hidden.gather(1, parent[..., None].expand(-1, -1, hidden.shape[-1]))
            hidden[:, mine] = self._step(depth, state, token_BK[:, mine])
        self.hidden = hidden
        self._depth = 0

    def at_level(self, level: int) -> None:
        """Say which level's codes come next after what `hidden` is set to."""
        self._depth = level

    def rewind(self) -> None:
        """`hidden` is of the prompts again."""
        self.hidden, self._depth = self._prompt_hidden, 0

    def _step(self, level: int, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        model = self._model
        codes = (token - model.sid_base - model.offsets[level]).clamp(0, model.head.sizes[level] - 1)
        return model.head.step(level, state, codes)


def open_decoder(
    model: Any, prompts: Sequence[Prompt], room: int, device: torch.device | str = "cpu"
) -> Decoder | ItemDecoder:
    """The decoder of a model, its prompts run. room: tokens a request that will be appended, at most.

    Raises InputError if prompts and model are not of one kind.
    """
    told = isinstance(model, ItemModel)
    if any(isinstance(prompt, Places) != told for prompt in prompts):
        raise InputError("prompts of one kind for a model of the other: take vocabulary and weights from one run")
    if isinstance(model, ItemModel):
        return ItemDecoder(model, prompts, device)  # type: ignore[arg-type]
    return Decoder(model, prompts, room, device)
