"""The words of a language model that speaks SIDs: token ids of everything, and text from outside kept to text.

Not a stage: `language/vocabulary.py` writes the artifact that this reads. Loading imports neither torch nor
transformers.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.catalog import Catalog
from models.language.numbers import Numbers
from plumline.artifact import read_json
from plumline.errors import CorruptArtifactError, MissingArtifactError
from plumline.sid import SidSpace
from plumline.tables import load_arrays

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CONTROL = ("<pad>", "<bos>", "<eos>", "<history>", "<user>", "<context>", "<next>")
"""Control tokens, in the order of their ids."""

_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class PromptShape:
    """What a prompt looks like; serving reads it where training wrote it.

    template: segments in order. max_history: items. profile_columns: columns of users that are features, sorted.
    max_profile_tokens: tokens of all of them. history_features: what stands behind each SID of the history, in order:
    "channel", or a number of the event. context_features: what stands before the SID of the context, in order:
    "channel", "title". max_title_tokens: of a title. item_places: an event of the history takes one place, not one a
    token (models/language/places.py).
    """

    template: tuple[str, ...]
    max_history: int
    profile_columns: tuple[str, ...]
    max_profile_tokens: int
    history_features: tuple[str, ...] = ()
    context_features: tuple[str, ...] = ()
    max_title_tokens: int = 0
    item_places: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """Reader of the artifact. Loading imports neither torch nor transformers.

    folder: where it was read. space: shape of a SID. text_model: what was extended, None for a tokenizer of our own.
    size: number of tokens, V. reserved_base: first reserved id; every id from it on is reserved.
    control: control token → id. gap_base, sid_base: first id of gaps and SIDs. gap_edges: hours at which each gap
    bucket begins. base_special: special ids that the extended tokenizer had already. shape: of a prompt.
    numbers: name → its buckets (events: watch_ratio, watch_time_s, rating, price, quantity; items: item_price,
    item_age_days, duration_s), those that were learned.
    """

    folder: Path
    space: SidSpace
    text_model: str | None
    size: int
    reserved_base: int
    control: Mapping[str, int]
    gap_base: int
    gap_edges: tuple[float, ...]
    sid_base: int
    base_special: frozenset[int]
    shape: PromptShape
    numbers: Mapping[str, Numbers] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Read a finished artifact. Raises MissingArtifactError or CorruptArtifactError."""
        raw = read_json(folder / "vocabulary.json")
        try:
            return cls(
                folder=folder,
                space=SidSpace(tuple(raw["sizes"])),
                text_model=raw["text_model"],
                size=raw["size"],
                reserved_base=raw["reserved_base"],
                control=raw["control"],
                gap_base=raw["gap_base"],
                gap_edges=tuple(raw["gap_edges_hours"]),
                sid_base=raw["sid_base"],
                base_special=frozenset(raw["base_special"]),
                shape=PromptShape(
                    template=tuple(raw["template"]),
                    max_history=raw["max_history"],
                    profile_columns=tuple(raw["profile_columns"]),
                    max_profile_tokens=raw["max_profile_tokens"],
                    history_features=tuple(raw.get("history_features", ())),  # older ones have none
                    context_features=tuple(raw.get("context_features", ())),
                    max_title_tokens=raw.get("max_title_tokens", 0),
                    item_places=raw.get("item_places", False),
                ),
                numbers={
                    name: Numbers(about["first_id"], tuple(about["edges"]))
                    for name, about in raw.get("numbers", {}).items()  # older ones have none
                },
            )
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(
                f"{folder / 'vocabulary.json'}: lacks {error}; run `python -m models.language.vocabulary` again"
            ) from None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The Hugging Face tokenizer, reserved tokens split in text as in `encode_untrusted`."""
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        tokenizer.backend_tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _encoder(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer" / "tokenizer.json"
        if not path.is_file():
            raise MissingArtifactError(f"{path}: no such file; run `python -m models.language.vocabulary` again")
        encoder = Tokenizer.from_file(str(path))
        encoder.encode_special_tokens = True
        encoder.no_padding()
        encoder.no_truncation()
        return encoder

    @cached_property
    def text_rows(self) -> np.ndarray:
        """Rows of the extended model's embeddings that the text tokens start from, (reserved_base,) int64."""
        path = self.folder / "text_rows.npz"
        if not path.is_file():
            return np.arange(self.reserved_base)
        rows = load_arrays(path)["rows"]
        if rows.shape != (self.reserved_base,):
            raise CorruptArtifactError(f"{path}: {len(rows)} rows for {self.reserved_base} text tokens; run again")
        return rows

    @property
    def reserved(self) -> range:
        """Ids that no text from outside may yield."""
        return range(self.reserved_base, self.size)

    def encode_untrusted(self, text: str | None, max_tokens: int, keep_edges: bool = False) -> list[int]:
        """Ids of text from outside, at most max_tokens, never a reserved one.

        NFKC, then control and zero-width characters out, spaces collapsed, clipped, then encoded with the special
        tokens split. keep_edges: a space at either end stays, as one. None gives [].
        """
        return self.encode_untrusted_batch([text], max_tokens, keep_edges)[0]

    def encode_untrusted_batch(
        self, texts: Iterable[str | None], max_tokens: int, keep_edges: bool = False
    ) -> list[list[int]]:
        """`encode_untrusted` of many texts, several times faster a text."""
        cleaned = [clean_text(text or "", _CHARACTERS_PER_TOKEN * max_tokens, keep_edges) for text in texts]
        found = []
        for encoding in self._encoder.encode_batch_fast(cleaned, add_special_tokens=False):
            # A unigram base tokenizer may spell its own "<s>" out of its vocabulary; such ids are dropped.
            ids = [i for i in encoding.ids if i not in self.base_special] if self.base_special else encoding.ids
            ids = ids[:max_tokens]
            assert not ids or max(ids) < self.reserved_base, "text from outside became a reserved token"
            found.append(ids)
        return found

    def spell(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the tokenizer spells it."""
        return tuple(self._encoder.id_to_token(token) or "" for token in token_ids)

    def encode_phrase(self, text: str) -> list[int]:
        """Ids of text of our own, as it stands, spaces at its ends included."""
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def gap_token(self, hours: float) -> int:
        """Id of the bucket of a pause. hours ≥ 0; below the first edge the first bucket, beyond the last the last."""
        return int(self.gap_tokens(np.array([hours]))[0])

    def gap_tokens(self, hours: np.ndarray) -> np.ndarray:
        """`gap_token` of many. hours: (n,). Returns (n,) int64."""
        bucket = np.searchsorted(np.asarray(self.gap_edges), hours, side="right") - 1
        return self.gap_base + np.maximum(bucket, 0)

    def number_tokens(self, name: str, values: np.ndarray) -> np.ndarray:
        """Token ids of the buckets of a number. values: (n,) float. Returns (n,) int64.

        -1 where the value is NaN, or everywhere if this vocabulary has no such number.
        """
        if name not in self.numbers:
            return np.full(len(values), -1, dtype=np.int64)
        return self.numbers[name].tokens(values)

    def sid_token_ids(self, codes: np.ndarray) -> np.ndarray:
        """Token ids of SIDs. codes: (N, L) integers. Returns (N, L) int64."""
        return self.space.token_ids(codes, self.sid_base)


def clean_text(text: str, max_characters: int, keep_edges: bool = False) -> str:
    """Text without anything invisible: NFKC, categories Cc, Cf, Cs, Co, Cn out, runs of space collapsed, clipped.

    keep_edges: a space at either end stays, as one; else there is none.
    """
    text = unicodedata.normalize("NFKC", text[:max_characters])
    if not text.isprintable():  # false for exactly the categories C* and for separators other than " "
        text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    clean = " ".join(text.split())[:max_characters].rstrip()
    if not keep_edges:
        return clean
    return " " * text[:1].isspace() + clean + " " * (bool(clean) and text[-1:].isspace())


def profile_text(profile: Mapping[str, str | None], columns: Sequence[str]) -> str:
    """A user's profile in one line, these columns in order, empty ones left out: "country France, device phone"."""
    return ", ".join(f"{name} {profile[name]}" for name in columns if profile.get(name))


def read_profiles(catalog: Catalog) -> dict[str, dict[str, str | None]]:
    """Profile features of every user that has any: user id → column → value."""
    return {row.pop("user_id"): row for row in catalog.users.to_pylist()}
