"""`plumline ask`: a prompt of text and SIDs, completed by the language model of a release (PLUM A.2, Table 8)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from features.catalog import Catalog
from flows.steps.registry import Registry
from models.language.completion import complete, encode_prompt, split_completion
from models.language.words import Vocabulary, clean_text
from models.semantic_ids.table import SidTable
from plumline.errors import InputError, RefusedError
from serving.pointers import read_pointer, read_tombstones
from serving.release import Release

_TITLE_CHARACTERS = 120


@dataclass(frozen=True)
class Passage:
    """A stretch of an answer. sid: whether it is a whole SID. item_id, title: of an item that has it, if one does."""

    text: str
    sid: bool
    item_id: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Completion:
    """An answer, ready to print. ended: whether the model came to an end by itself."""

    release_id: str
    weights: str
    num_prompt_tokens: int
    passages: tuple[Passage, ...]
    ended: bool

    def to_json(self) -> dict[str, Any]:
        """Every field, and the answer as one text."""
        return {
            "release_id": self.release_id,
            "weights": self.weights,
            "num_prompt_tokens": self.num_prompt_tokens,
            "text": "".join(passage.text for passage in self.passages),
            "passages": [vars(passage) for passage in self.passages],
            "ended": self.ended,
        }

    def lines(self) -> list[str]:
        """One line: the answer, each SID followed by the title of its item in brackets."""
        told = [f"{p.text} [{p.title}] " if p.title else p.text for p in self.passages]
        return ["".join(told).strip()]


def ask(
    home: Path, prompt: str, *, release_id: str | None, max_tokens: int, weights: Literal["cpt", "sft"]
) -> Completion:
    """Complete a prompt. release_id: None: the champion. weights: of continued pre-training, or the fine-tuned ones.

    Raises RefusedError without a champion, InputError for a prompt that names an unknown item or code.
    """
    if release_id is None:
        pointer = read_pointer(home / "releases")
        if pointer is None:
            raise RefusedError("no champion yet; run plumline bootstrap first")
        release_id = pointer.release_id
    release = Release.load(Registry(home).restore(release_id))
    words, table = Vocabulary.load(release.path("vocabulary")), SidTable.load(release.path("sids"))
    if weights == "sft" and words.shape.item_places:
        raise InputError(
            f"--weights sft: the fine-tuned model of {release_id} reads one position an item and completes no text; "
            "give --weights cpt"
        )
    ids = encode_prompt(words, prompt, table.codes_of)  # before the weights are read
    from models.language.model import check_vocabulary, load_language_model, pick_device, use_threads

    use_threads()
    model = load_language_model(release.path(weights) / "weights", pick_device())
    check_vocabulary(model, words)
    found = complete(model, words, ids, max_tokens)
    titles = _Titles(table, Catalog.load(release.path("catalog")), read_tombstones(home / "releases"))
    passages = [
        Passage(part.text, False) if part.codes is None else Passage(part.text, True, *titles.of(part.codes))
        for part in split_completion(words, found)
    ]
    return Completion(release.release_id, weights, len(ids), tuple(passages), len(found) < max_tokens)


class _Titles:
    """Items by their codes; deleted ones stay deleted."""

    def __init__(self, table: SidTable, catalog: Catalog, tombstones: frozenset[str]) -> None:
        self.table, self.tombstones = table, tombstones
        self.titles = catalog.items.column("title")
        self.position = catalog.position

    def of(self, codes: tuple[int, ...]) -> tuple[str | None, str | None]:
        """Id and title of the first item with these codes; None where there is none."""
        for row in np.flatnonzero((self.table.codes == np.array(codes)).all(axis=1)):
            item = self.table.item_ids[row]
            if item not in self.tombstones:
                place = self.position.get(item)
                title = None if place is None else self.titles[place].as_py()
                return item, clean_text(title, _TITLE_CHARACTERS) if title else None
        return None, None
