"""Requests → items: what the scores stage and the service share, so that what is measured is what is served.

Not a stage. A Retriever holds everything of one release that answers depend on: weights, vocabulary, SIDs, index, and
which items are retired. It never changes after loading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.index import Index, read_index_item_ids
from plumline.errors import InputError, MixedReleaseError

if TYPE_CHECKING:
    import torch

    from models.beam import Beams, Trie
    from models.vocabulary import Vocabulary

_MAX_BATCH = 16  # requests of one forward pass; more gains nothing on a CPU
_MAX_MASK = 1 << 24  # entries of the attention mask of one forward pass (B x K x T), which bounds the memory


@dataclass(frozen=True)
class Request:
    """Who asks, and what may not come back.

    history: (item_id, epoch milliseconds), oldest first; may be empty (a cold user). profile: feature → value.
    context_item: the item being looked at; None: the last one of the history. at_ms: when, epoch milliseconds; None: a
    day after the last event. exclude: items that must not come back (seen, blocked).
    """

    history: Sequence[tuple[str, int]] = ()
    profile: Mapping[str, str | None] = field(default_factory=dict)
    context_item: str | None = None
    at_ms: int | None = None
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Hit:
    """One recommended item: its SID's log-probability (items behind one SID share it) and codes, length L."""

    item_id: str
    score: float
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A request as token ids. num_unknown: items of its history (and its context item) that have no SID: dropped."""

    token_ids: list[int]
    num_unknown: int


@dataclass(frozen=True, eq=False)
class Retriever:
    """See the module's docstring. item_ids: item behind each row of the index. retired: items never to be returned.

    codes_of: SID of every item that has one, retired ones included (they still tell something about a user).
    """

    model: Any
    vocabulary: Vocabulary
    index: Index
    item_ids: list[str]
    codes_of: Mapping[str, tuple[int, ...]]
    retired: frozenset[str]
    device: torch.device | str

    @staticmethod
    def load(
        *, vocabulary: Path, sids: Path, weights: Path, index: Path, catalog: Path, device: torch.device | str
    ) -> Retriever:
        """Read the parts of one release. weights: folder of Hugging Face weights (`<sft>/weights`).

        catalog: may be newer than the index; what it says is retired is not returned.
        Raises MixedReleaseError if the parts cannot belong together, ArtifactError if one cannot be read.
        """
        from features.catalog import Catalog
        from models.language import check_vocabulary, load_language_model
        from models.sid_table import SidTable
        from models.vocabulary import Vocabulary

        words, table, trie = Vocabulary.load(vocabulary), SidTable.load(sids), Index.load(index)
        if not tuple(words.space.sizes) == tuple(table.space.sizes) == tuple(trie.sizes):
            raise MixedReleaseError(
                f"SID levels {words.space.sizes} in {vocabulary}, {table.space.sizes} in {sids}, "
                f"{trie.sizes} in {index}: take all parts from one release"
            )
        model = load_language_model(weights, device)
        check_vocabulary(model, words)
        item_ids = read_index_item_ids(index)
        if len(item_ids) != trie.num_items or not set(item_ids) <= table.codes_of.keys():
            raise MixedReleaseError(f"{index} holds items that {sids} does not; take all parts from one release")
        items = Catalog.load(catalog).items
        retired = items.filter(items.column("retired")).column("item_id").to_pylist()
        return Retriever(model, words, trie, item_ids, table.codes_of, frozenset(retired), device)

    @cached_property
    def _trie(self) -> Trie:
        from models.beam import Trie

        return Trie.of(self.index, self.device)

    @cached_property
    def live_items(self) -> frozenset[str]:
        """Every item that can come back."""
        return frozenset(self.item_ids) - self.retired

    def prompt(self, request: Request) -> Prompt:
        """Token ids of a request, the same that training saw for such a user."""
        from models.prompt import render_prompt

        known = [(self.codes_of[item], time) for item, time in request.history if item in self.codes_of]
        context = self.codes_of.get(request.context_item) if request.context_item is not None else None
        num_unknown = len(request.history) - len(known) + (request.context_item is not None and context is None)
        tokens = render_prompt(
            self.vocabulary, history=known, profile=request.profile, context=context, at_ms=request.at_ms
        )
        return Prompt(tokens, num_unknown)

    def retrieve(self, requests: Sequence[Request], k: int, width: int) -> list[list[Hit]]:
        """The k best items of each request, best first, no repeats, none excluded, none retired.

        width: beams to begin with; a request for which too few items remain is searched again with twice as many, and
        so on up to the number of leaves. So k items come back whenever k live items are not excluded, and all of
        those otherwise.
        """
        return self.fill(requests, self.beams(requests, width), k, width)

    def beams(self, requests: Sequence[Request], width: int, *, constrained: bool = True) -> list[Beams]:
        """The `width` best SIDs of each request, whoever is excluded; with constrained=False not only live ones."""
        if width < 1:
            raise InputError(f"beam width {width}: at least 1")
        return self._search([self.prompt(request).token_ids for request in requests], width, constrained)

    def fill(self, requests: Sequence[Request], beams: Sequence[Beams], k: int, width: int) -> list[list[Hit]]:
        """`retrieve`, beginning with the beams of this width that are there already."""
        if k < 1:
            raise InputError(f"k {k}: at least 1")
        found: list[list[Hit]] = [[] for _ in requests]
        waiting, width = list(range(len(requests))), min(width, self.index.num_leaves)
        while waiting:
            short = []
            for number, one in zip(waiting, beams, strict=True):
                found[number] = self.hits(one, requests[number].exclude, k)
                if len(found[number]) < k and width < self.index.num_leaves:
                    short.append(number)
            waiting, width = short, min(2 * width, self.index.num_leaves)
            if waiting:
                beams = self.beams([requests[number] for number in waiting], width)
        return found

    def hits(self, beams: Beams, exclude: Collection[str], k: int) -> list[Hit]:
        """Items behind the beams, best first, at most k; behind one leaf in its priority order."""
        hits: list[Hit] = []
        leaves = self.index.find_leaves(beams.codes)
        for leaf, codes, score in zip(leaves.tolist(), beams.codes.tolist(), beams.scores.tolist(), strict=True):
            assert leaf >= 0, "the search returned a SID that the index does not hold"
            for row in self.index.rows_behind(leaf).tolist():
                item = self.item_ids[row]
                if item in exclude or item in self.retired:
                    continue
                hits.append(Hit(item, score, tuple(codes)))
                if len(hits) == k:
                    return hits
        return hits

    def _search(self, prompts: Sequence[Sequence[int]], width: int, constrained: bool) -> list[Beams]:
        """Beam search in batches of about equally long prompts, so that little padding is computed."""
        from tqdm import tqdm

        from models.beam import beam_search

        found: dict[int, Beams] = {}
        progress = tqdm(total=len(prompts), desc=f"beam {width}", unit="request", disable=len(prompts) < 100 or None)
        order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number), reverse=True)
        while order:
            length = len(prompts[order[0]]) + width * (self.vocabulary.space.num_levels - 1)
            size = max(1, min(_MAX_BATCH, _MAX_MASK // (width * length)))
            batch, order = order[:size], order[size:]
            results = beam_search(
                self.model,
                [prompts[number] for number in batch],
                space=self.vocabulary.space,
                sid_base=self.vocabulary.sid_base,
                index=self._trie if constrained else None,
                width=width,
                device=self.device,
            )
            found |= dict(zip(batch, results, strict=True))
            progress.update(len(batch))
        progress.close()
        return [found[number] for number in range(len(prompts))]
