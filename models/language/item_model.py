"""A causal language model that reads a history one place an item, and a head that names the next SID code by code.

    places → bags of token embeddings → backbone → hidden of the last place + embedding of the question = state 0
    state l → log-probabilities of the codes of level l;  state l and the code taken there → state l + 1

The backbone and the embeddings are those of the language model that continued pre-training left; the head is new. It is
the small autoregressive network over the codes of one position that RQ-Transformer puts on a large one (Lee et al.
2022, "Autoregressive Image Generation using Residual Quantization": spatial and depth transformer), here a gated
feed-forward block a level. So an event costs the backbone one position instead of one a token, every event of a
history can be a target at the price of the head, and a beam search never runs the backbone again after the prompt.

torch from the first line: import it late. Shapes: B requests, T places, W tokens of a place, D width, n targets,
S codes of a level.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.language.model import load_language_model, save_language_model
from models.language.places import HeadParams
from models.language.plain import load_plain
from models.language.words import Vocabulary
from plumline.artifact import read_json, write_json
from plumline.errors import CorruptArtifactError, MissingArtifactError, MixedReleaseError
from plumline.stage import hash_seed

_CONFIG, _WEIGHTS = "sid_head.json", "sid_head.safetensors"
_CODE_STD, _OUTPUT_STD = 0.1, 0.02


class Bag(nn.Module):
    """Adds up the embeddings of the tokens of each place. A module, so that dropout can be put on what it gives."""

    def forward(self, tokens_BTW: Tensor, table: Tensor, pad: int, more_BTD: Tensor | None) -> Tensor:
        """(B, T, D). pad: token that counts nothing. more_BTD: to be added."""
        flat = tokens_BTW.flatten(0, -2)
        summed = functional.embedding_bag(flat, table, mode="sum", padding_idx=pad)
        summed_BTD = summed.view(*tokens_BTW.shape[:-1], -1)
        return summed_BTD if more_BTD is None else summed_BTD + more_BTD


class Prefixes(nn.Module):
    """An embedding of the first two codes of a SID together, beside those of each (prefix n-grams; Singh et al. 2023,
    "Better Generalization with Semantic IDs"): what one sum of codes cannot tell from another.

    rows: of the table; more pairs than that share rows. It starts at zero, so a pair that nobody was seen with adds
    nothing.
    """

    def __init__(self, sizes: Sequence[int], hidden: int, rows: int, sid_base: int) -> None:
        super().__init__()
        self.first, self.second = sizes[0], sizes[1]
        self.sid_base = sid_base
        self.table = nn.Embedding(rows, hidden)
        nn.init.zeros_(self.table.weight)

    def forward(self, tokens_BTW: Tensor) -> Tensor:
        """(B, T, D); zero where a place has no SID."""
        first_BTW = tokens_BTW - self.sid_base
        second_BTW = first_BTW - self.first
        one_BT = first_BTW.masked_fill((first_BTW < 0) | (first_BTW >= self.first), -1).amax(-1)
        two_BT = second_BTW.masked_fill((second_BTW < 0) | (second_BTW >= self.second), -1).amax(-1)
        there_BT = (one_BT >= 0) & (two_BT >= 0)
        pair_BT = torch.where(there_BT, one_BT * self.second + two_BT, 0) % self.table.num_embeddings
        found: Tensor = self.table(pair_BT) * there_BT[..., None]
        return found


class SidHead(nn.Module):
    """Codes of a SID, one level after the other, from a state of the backbone. sizes: codes of each level."""

    def __init__(self, sizes: Sequence[int], hidden: int, intermediate: int) -> None:
        super().__init__()
        self.sizes, self.intermediate = tuple(sizes), intermediate
        after = self.sizes[:-1]
        self.codes = nn.ModuleList(nn.Embedding(size, hidden) for size in after)
        self.norms = nn.ModuleList(nn.RMSNorm(hidden, eps=1e-6) for _ in after)
        self.gates = nn.ModuleList(nn.Linear(2 * hidden, intermediate, bias=False) for _ in after)
        self.ups = nn.ModuleList(nn.Linear(2 * hidden, intermediate, bias=False) for _ in after)
        self.downs = nn.ModuleList(nn.Linear(intermediate, hidden, bias=False) for _ in after)
        self.outputs = nn.ModuleList(nn.Linear(hidden, size) for size in self.sizes)

    def start(self, seed: int) -> None:
        """Draw the initial weights."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("codes"):
                    parameter.normal_(0.0, _CODE_STD, generator=generator)
                elif name.endswith("bias"):
                    parameter.zero_()
                elif not name.startswith("norms"):
                    parameter.normal_(0.0, _OUTPUT_STD, generator=generator)

    def log_probabilities(self, level: int, state: Tensor) -> Tensor:
        """(…, S) of the codes of a level, 0 the first. state: (…, D), of that level."""
        return torch.log_softmax(self.logits(level, state), dim=-1)

    def logits(self, level: int, state: Tensor) -> Tensor:
        """(…, S), float32 or more."""
        logits: Tensor = self.outputs[level](state)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def step(self, level: int, state: Tensor, codes: Tensor) -> Tensor:
        """States of the next level. state: (…, D), of `level`. codes: (…) int64, taken there. Returns (…, D)."""
        taken = self.codes[level](codes)
        both = torch.cat([self.norms[level](state), taken], dim=-1)
        block: Tensor = self.downs[level](functional.silu(self.gates[level](both)) * self.ups[level](both))
        return state + taken + block


class ItemModel(nn.Module):
    """See the module's docstring.

    lm: causal LM (of transformers, or `PlainModel`). prefixes: None for no table. sid_base: id of the first
    SID token. pad: id of the token that counts nothing.
    """

    def __init__(self, lm: Any, head: SidHead, prefixes: Prefixes | None, sid_base: int, pad: int) -> None:
        super().__init__()
        self.lm, self.head, self.prefixes, self.bag = lm, head, prefixes, Bag()
        self.sid_base, self.pad = sid_base, pad
        self.offsets = [sum(head.sizes[:level]) for level in range(len(head.sizes))]
        if (unused := lm.get_output_embeddings()).weight is not lm.get_input_embeddings().weight:
            unused.requires_grad_(False)  # it would get no gradient, which trainings of several processes wait for

    @property
    def config(self) -> Any:
        """Of the language model."""
        return self.lm.config

    @property
    def base_model(self) -> Any:
        """The backbone."""
        return self.lm.base_model

    def get_input_embeddings(self) -> Any:
        """One row a token."""
        return self.lm.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The output layer of the language model, which a request in places does not use."""
        return self.lm.get_output_embeddings()

    def embed(self, tokens_BTW: Tensor) -> Tensor:
        """(B, T, D), what the backbone reads. tokens_BTW: int64, `pad` where a place has fewer."""
        pairs = None if self.prefixes is None else self.prefixes(tokens_BTW)
        found: Tensor = self.bag(tokens_BTW, self.get_input_embeddings().weight, self.pad, pairs)
        return found

    def ask(self, hidden: Tensor, question: Tensor) -> Tensor:
        """State 0 of the head, (…, D). hidden: (…, D). question: (…) int64 token ids, `pad` for none."""
        rows = self.get_input_embeddings().weight[question]
        state: Tensor = hidden + rows * (question != self.pad)[..., None]
        return state

    def target_losses(self, state_nD: Tensor, codes_nL: Tensor) -> Tensor:
        """Cross-entropy of each code of n targets, summed. state_nD: of `ask`. codes_nL: int64. Scalar, float32."""
        total, state = torch.zeros((), device=state_nD.device), state_nD
        for level in range(len(self.head.sizes)):
            total = total + functional.cross_entropy(
                self.head.logits(level, state), codes_nL[:, level], reduction="sum"
            )
            if level + 1 < len(self.head.sizes):
                state = self.head.step(level, state, codes_nL[:, level])
        return total

    @torch.inference_mode()
    def log_probabilities(self, state: Tensor, codes: np.ndarray) -> np.ndarray:
        """(n,) float, of whole SIDs in state 0 of the head. state: (D,). codes: (n, L).

        What SIDs share on their way is computed once: a beginning that several of them have.
        """
        state_1D, total = state[None], np.zeros(len(codes))
        node = np.zeros(len(codes), dtype=np.int64)  # of each SID, among the states
        for level in range(len(self.head.sizes)):
            logp = self.head.log_probabilities(level, state_1D).cpu().numpy()
            total += logp[node, codes[:, level]]
            if level + 1 < len(self.head.sizes):
                size = self.head.sizes[level]
                taken, node_of = np.unique(node * size + codes[:, level], return_inverse=True)
                parents, code = (torch.from_numpy(one).to(state.device) for one in np.divmod(taken, size))
                state_1D, node = self.head.step(level, state_1D[parents], code), node_of
        return total

    def anchored(self) -> dict[str, nn.Parameter]:
        """Trained parameters that the language model has too, by their names there."""
        return {name: parameter for name, parameter in self.lm.named_parameters() if parameter.requires_grad}


def start_item_model(lm: Any, vocabulary: Vocabulary, params: HeadParams, seed: int) -> ItemModel:
    """A language model with a new head."""
    model = _shape(lm, vocabulary, params)
    model.head.start(hash_seed(seed, "sid head"))
    return model


def _shape(lm: Any, vocabulary: Vocabulary, params: HeadParams) -> ItemModel:
    sizes, hidden = vocabulary.space.sizes, int(lm.config.hidden_size)
    prefixes = None
    if len(sizes) > 1 and params.prefix_rows:
        prefixes = Prefixes(sizes, hidden, min(params.prefix_rows, sizes[0] * sizes[1]), vocabulary.sid_base)
    head = SidHead(sizes, hidden, params.intermediate)
    return ItemModel(lm, head, prefixes, vocabulary.sid_base, vocabulary.control["<pad>"])


def save_item_model(model: ItemModel, folder: Path) -> None:
    """Write the language model as `save_language_model` does, and the head beside it."""
    from safetensors.torch import save_file

    save_language_model(model.lm, folder)
    save_file(_own(model), folder / _WEIGHTS)
    rows = 0 if model.prefixes is None else model.prefixes.table.num_embeddings
    about = {"sizes": list(model.head.sizes), "intermediate": model.head.intermediate, "prefix_rows": rows}
    write_json(folder / _CONFIG, about)


def _own(model: ItemModel) -> dict[str, Tensor]:
    """Weights that the language model has not."""
    return {name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith("lm.")}


def load_item_model(
    folder: Path,
    vocabulary: Vocabulary,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    plain: bool = False,
) -> ItemModel:
    """Read what `save_item_model` wrote, in evaluation mode. plain: without transformers, where that is possible.

    Raises MissingArtifactError or CorruptArtifactError if a part is not there or does not fit, MixedReleaseError if the
    vocabulary has SIDs of other levels.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    lm: Any = load_plain(folder, device, precision) if plain else None
    if lm is None:
        lm = load_language_model(folder, device, precision)
    if not (folder / _WEIGHTS).is_file():
        raise MissingArtifactError(
            f"{folder}: no {_WEIGHTS} beside the model, so nothing names SIDs; run the stage sft"
        )
    try:
        about = read_json(folder / _CONFIG)
        sizes = tuple(about.pop("sizes"))
        params = HeadParams(**about)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{folder}: {' '.join(str(error).split())[:300]}") from None
    if sizes != tuple(vocabulary.space.sizes):
        raise MixedReleaseError(
            f"{folder}: a SID head of levels {sizes}, a vocabulary of {tuple(vocabulary.space.sizes)}; "
            "take both from one run"
        )
    model = _shape(lm, vocabulary, params)
    try:
        found = load_file(folder / _WEIGHTS)
        if found.keys() != (wanted := _own(model).keys()):
            raise CorruptArtifactError(f"{folder / _WEIGHTS}: not {sorted(found.keys() ^ wanted)[0]}; train again")
        model.load_state_dict(found, strict=False)
    except (RuntimeError, SafetensorError) as error:
        raise CorruptArtifactError(f"{folder}: {' '.join(str(error).split())[:300]}") from None
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return model.to(device=device, dtype=kind).eval()
