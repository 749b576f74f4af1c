"""What both sets of training examples are made of: events as flat arrays, their tokens, profiles, texts.

Not a stage: `corpus` loads it once and hands it to `cpt_examples` and `sft_examples`.
"""

from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.catalog import Catalog
from features.histories import flat_numbers, read_histories
from models.corpus.teacher import TeacherParams
from models.language.facts import EventTokens
from models.language.numbers import item_numbers as of_catalogue
from models.language.prompt import render_events
from models.language.words import Vocabulary, read_profiles
from models.semantic_ids.table import SidTable
from plumline.errors import InputError
from plumline.schema import NUMBERS
from plumline.stage import Params

MS_PER_DAY = 86_400_000
EPOCH = date(1970, 1, 1)


class CorpusParams(Params):
    """What is taken from histories and catalogue."""

    max_tokens: int = Field(default=512, ge=16)
    """Longest example in tokens; the loops' row_tokens must be at least this."""
    max_text_tokens: int = Field(default=48, ge=1)
    """Longest text of one item in a metadata example."""
    feature_share: float = Field(default=0.25, ge=0.0, le=1.0)
    """Share of behaviour examples with features: each item's channel and the event's numbers, where known (Table 1)."""
    general_text: Path | None = None
    """A text file, a paragraph a line, mixed into continued pre-training; a changed file needs another name."""
    general_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the examples of continued pre-training that are lines of general_text."""
    heldout_share: float = Field(default=0.02, ge=0.0, le=0.5)
    """Share of items, users and lines that continued pre-training is examined on and never sees (a few to 500)."""
    trunk_loss: bool = True
    """Whether the items of the history are targets too, predicted from the history before them."""
    day_targets: int = Field(default=8, ge=0)
    """Most items that are targets where a day begins, drawn without replacement from those of the day; 0: the next
    event alone, which is right where events follow from one another and days mean nothing."""
    target_days: int = Field(default=1, ge=1)
    """Days, a branch's own and those after it, whose items are its targets; 1: that day's alone. More of them teach
    what is taken soon and not only next, for lists that are served for days. Those of older days end at recent ones."""
    session_branches: int = Field(default=1, ge=0)
    """Branches a window that begin within a day, each with the very next item as its target."""
    taught_targets: int = Field(default=0, ge=0)
    """Further targets of a day's branch, drawn from a training-free teacher (models/corpus/teacher.py); 0: none. It
    compares all pairs of items: seconds for ten thousand, hours for a million."""
    teacher: TeacherParams = TeacherParams()
    """How that teacher ranks."""
    reward_cap: float = Field(default=0.9, gt=0.0, le=1.0)
    """Quantile of the rewards above 0 from which on an event is a target for sure; below it by reward / that reward."""
    half_life_days: float = Field(default=180.0, gt=0.0)
    """A window so much older than another comes half as likely before it in an epoch."""
    recent_days: int = Field(default=1, ge=1)
    """Targets of the last so many days (as_of included) have `recent` windows of their own: the daily increment."""
    replay_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the windows of older targets that are `replay`, trained with the daily increment against forgetting."""


@dataclass(frozen=True)
class Events:
    """Known items of all users, user after user, oldest first.

    rows: (E,) int64, row of the item in the SID table. timestamps: (E,) epoch milliseconds. user_ids: (U,).
    user_starts: (U + 1,) int64, first event of each user. num_unknown: events dropped because their item has no SID.
    rewards: (E,) float32, what the recipe's `histories.reward` makes of each event.
    numbers: numeric column of events → (E,) float32, NaN where it is not known.
    """

    rows: np.ndarray
    timestamps: np.ndarray
    user_ids: list[str]
    user_starts: np.ndarray
    num_unknown: int
    rewards: np.ndarray
    numbers: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, histories: pa.Table, sids: SidTable) -> "Events":
        """Flatten a HISTORIES table."""
        items = histories.column("item_ids").combine_chunks()
        lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False).astype(np.int64)
        found = pc.index_in(items.flatten(), value_set=pa.array(sids.item_ids, pa.string()))
        known = found.is_valid().to_numpy(zero_copy_only=False)
        user = np.repeat(np.arange(len(lengths)), lengths)[known]
        counts = np.bincount(user, minlength=len(lengths))
        return cls(
            rows=found.drop_null().to_numpy().astype(np.int64),
            timestamps=histories.column("timestamps").combine_chunks().flatten().to_numpy(zero_copy_only=False)[known],
            user_ids=histories.column("user_id").to_pylist(),
            user_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            num_unknown=int((~known).sum()),
            rewards=flat_numbers(histories, "rewards", lengths)[known],
            numbers={name: flat_numbers(histories, name, lengths)[known] for name in NUMBERS},
        )

    @property
    def firsts(self) -> np.ndarray:
        """(E,) bool: the first event of its user."""
        first = np.zeros(len(self.rows), dtype=bool)
        first[self.user_starts[:-1][np.diff(self.user_starts) > 0]] = True
        return first


@dataclass(frozen=True)
class Material:
    """What both sets of examples are made of.

    words, sids, events: as read. stream: tokens of all events, without features. profiles: user id → column → value.
    texts: describing column → row of the SID table → text. topics: row → its topics, each by itself.
    item_numbers: item_price, item_age_days (on the day of the last event), duration_s → (N,) float32 by row of the SID
    table, NaN where not known.
    """

    words: Vocabulary
    sids: SidTable
    events: Events
    stream: EventTokens
    profiles: dict[str, dict[str, str | None]]
    texts: dict[str, dict[int, str]]
    topics: dict[int, tuple[str, ...]] = field(default_factory=dict)
    item_numbers: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def load(cls, *, catalog: Path, histories: Path, sids: Path, vocabulary: Path) -> "Material":
        """Read the stage's inputs. Raises InputError if vocabulary and SID table are not of one run."""
        words, table, items = Vocabulary.load(vocabulary), SidTable.load(sids), Catalog.load(catalog)
        if words.space != table.space:
            raise InputError(
                f"vocabulary speaks SIDs of levels {words.space.sizes}, sids holds {table.space.sizes}; take one run's"
            )
        events = Events.of(read_histories(histories), table)
        stream = render_events(words, table.codes[events.rows], events.timestamps, events.firsts)
        return cls(
            words,
            table,
            events,
            stream,
            read_profiles(items),
            item_texts(items, table),
            item_topics(items, table),
            item_numbers(items, table, int(events.timestamps.max(initial=0)) // MS_PER_DAY),
        )


def item_texts(catalog: Catalog, sids: SidTable) -> dict[str, dict[int, str]]:
    """Describing columns of items that have a SID: column → row of the SID table → text; empty texts left out."""
    rows = _rows(catalog, sids)
    texts: dict[str, dict[int, str]] = {}
    for name in ("title", "description", "channel", "topics"):
        values = catalog.items.column(name).to_pylist()
        joined = [", ".join(value) if isinstance(value, list) else value for value in values]
        texts[name] = {row: text for row, text in zip(rows, joined, strict=True) if row is not None and text}
    return texts


def item_topics(catalog: Catalog, sids: SidTable) -> dict[int, tuple[str, ...]]:
    """Topics of items that have a SID and any topic: row of the SID table → topics."""
    values = catalog.items.column("topics").to_pylist()
    rows = _rows(catalog, sids)
    return {row: tuple(value) for row, value in zip(rows, values, strict=True) if row is not None and value}


def item_numbers(catalog: Catalog, sids: SidTable, last_day: int) -> dict[str, np.ndarray]:
    """The numbers of items: name → (N,) float32 by row of the SID table, NaN where not known. last_day: of 1970.

    item_age_days: days since the item was published or first seen, 0 for one that is to come.
    """
    rows = [(row, place) for place, row in enumerate(_rows(catalog, sids)) if row is not None]
    goal, source = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    numbers: dict[str, np.ndarray] = {}
    for name, column in of_catalogue(catalog, EPOCH + timedelta(days=last_day)).items():
        numbers[name] = np.full(len(sids.item_ids), np.nan, dtype=np.float32)
        numbers[name][goal] = column[source]
    return numbers


def _rows(catalog: Catalog, sids: SidTable) -> list[int | None]:
    """Row of the SID table of every item of the catalogue."""
    row_of = {item: row for row, item in enumerate(sids.item_ids)}
    return [row_of.get(item) for item in catalog.items.column("item_id").to_pylist()]
