"""Histories and catalogue → token sequences: text for continued pre-training, prompts with targets for fine-tuning.

reads   catalog, histories, sids, vocabulary
writes  cpt.npz, sft.npz, report.json
run     python -m models.corpus --params recipes/cpu_tiny.yaml --catalog … --histories … --sids … --vocabulary … \
            --as-of 2011-10-31 --seed 17 --out artifacts/corpus

CPT (PLUM 2.2, Table 1): half of the examples are behaviour (a window of a user's history), half metadata (SID + title,
SID + topics, text → SID …); every token counts in the loss.

SFT (PLUM 2.3, eq. 3): a window of a user's history is one example in which no token is computed twice. It is a tree:
the trunk is the history; where a new day begins a branch leaves it that holds the rest of the prompt and then, each as
a branch of its own, the items of that day. The path from the root to a target is token by token what `render_prompt`
gives a server that is asked at that moment, so that every target of a window is learned the way it is served.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from tqdm import tqdm

from features.catalog import Catalog
from features.histories import read_histories
from models.examples import Examples, ExamplesBuilder
from models.prompt import EventTokens, Profile, render_events, render_head, render_tail
from models.sid_table import SidTable
from models.vocabulary import PHRASES, Vocabulary, read_profiles
from plumline.artifact import write_json
from plumline.errors import InputError
from plumline.stage import Params, hash_seed, main, say

MS_PER_DAY = 86_400_000
EPOCH = date(1970, 1, 1)


class CorpusParams(Params):
    """What is taken from histories and catalogue."""

    max_tokens: int = Field(default=512, ge=16)
    """Longest example in tokens; the loops' row_tokens must be at least this."""
    max_text_tokens: int = Field(default=48, ge=1)
    """Longest text of one item in a metadata example."""
    channel_share: float = Field(default=0.25, ge=0.0, le=1.0)
    """Share of behaviour examples that name each item's channel, where the catalogue has channels (Table 1)."""
    trunk_loss: bool = True
    """Whether the items of the history are targets too, predicted from the history before them."""
    day_targets: int = Field(default=8, ge=1)
    """Most items of one day that are targets of its branch, drawn without replacement."""
    session_branches: int = Field(default=1, ge=0)
    """Branches a window that begin within a day, each with the very next item as its target."""
    half_life_days: float = Field(default=180.0, gt=0.0)
    """A window so much older than another comes half as likely before it in an epoch."""
    recent_days: int = Field(default=1, ge=1)
    """A window whose last target lies in the last so many days (as_of included) is `recent`: the daily increment."""
    replay_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the other windows that are `replay`, trained with the daily increment against forgetting."""


@dataclass(frozen=True)
class Events:
    """Known items of all users, user after user, oldest first.

    rows: (E,) int64, row of the item in the SID table. timestamps: (E,) epoch milliseconds. user_ids: (U,).
    user_starts: (U + 1,) int64, first event of each user. num_unknown: events dropped because their item has no SID.
    """

    rows: np.ndarray
    timestamps: np.ndarray
    user_ids: list[str]
    user_starts: np.ndarray
    num_unknown: int

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
            timestamps=histories.column("timestamps").combine_chunks().flatten().to_numpy()[known],
            user_ids=histories.column("user_id").to_pylist(),
            user_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            num_unknown=int((~known).sum()),
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

    words, sids, events: as read. stream: tokens of all events. profiles: user id → column → value.
    texts: describing column → row of the SID table → text.
    """

    words: Vocabulary
    sids: SidTable
    events: Events
    stream: EventTokens
    profiles: dict[str, dict[str, str | None]]
    texts: dict[str, dict[int, str]]

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
        return cls(words, table, events, stream, read_profiles(items), item_texts(items, table))


def run(
    params: CorpusParams,
    *,
    catalog: Path,
    histories: Path,
    sids: Path,
    vocabulary: Path,
    as_of: date,
    seed: int,
    out: Path,
) -> None:
    """Write both sets of examples. See the module's docstring."""
    material = Material.load(catalog=catalog, histories=histories, sids=sids, vocabulary=vocabulary)
    events, last_day = material.events, (as_of - EPOCH).days
    if len(events.timestamps) and events.timestamps.max() >= (last_day + 1) * MS_PER_DAY:
        raise InputError(f"histories know events after {as_of}; run the stage histories with --as-of {as_of} again")
    cpt = cpt_examples(params, material, np.random.default_rng(hash_seed(seed, "cpt")))
    sft = sft_examples(params, material, last_day, np.random.default_rng(hash_seed(seed, "sft")))
    cpt.save(out / "cpt.npz")
    sft.save(out / "sft.npz")
    report = {"cpt": cpt.describe(), "sft": sft.describe()}
    write_json(out / "report.json", {**report, "events": len(events.rows), "unknown_events": events.num_unknown})
    for name, examples in (("cpt", cpt), ("sft", sft)):
        say(f"corpus: {name} has {examples.num_examples} examples, {len(examples.tokens)} tokens")


# --- continued pre-training ---


def item_texts(catalog: Catalog, sids: SidTable) -> dict[str, dict[int, str]]:
    """Describing columns of items that have a SID: column → row of the SID table → text; empty texts left out."""
    row_of = {item: row for row, item in enumerate(sids.item_ids)}
    rows = [row_of.get(item) for item in catalog.items.column("item_id").to_pylist()]
    texts: dict[str, dict[int, str]] = {}
    for name in ("title", "description", "channel", "topics"):
        values = catalog.items.column(name).to_pylist()
        joined = [", ".join(value) if isinstance(value, list) else value for value in values]
        texts[name] = {row: text for row, text in zip(rows, joined, strict=True) if row is not None and text}
    return texts


def cpt_examples(params: CorpusParams, material: Material, rng: np.random.Generator) -> Examples:
    """As many behaviour as metadata examples (only one sort if there is nothing to make the other of)."""
    words, events, stream, texts = material.words, material.events, material.stream, material.texts
    builder = ExamplesBuilder()
    bos, eos = words.control["<bos>"], words.control["<eos>"]
    phrase = {name: [words.encode_phrase(part) for part in parts] for name, parts in PHRASES.items()}
    encoded = {
        name: dict(zip(column, words.encode_untrusted_batch(column.values(), params.max_text_tokens), strict=True))
        for name, column in texts.items()
    }
    # 1. Behaviour: consecutive windows of every history, the last one ending with the last event.
    levels, longest = words.space.num_levels, words.shape.max_history
    opening = np.array([bos, *phrase["history"][0]], dtype=np.int32)
    channels = {row: np.array(ids, dtype=np.int32) for row, ids in encoded["channel"].items()}
    num_behaviour = 0
    for begin, end in zip(events.user_starts[:-1], events.user_starts[1:], strict=True):
        for stop in range(end, begin + 1, -longest):  # a window of one event predicts nothing
            start = max(begin, stop - longest)
            skip = stream.starts[start + 1] - levels  # a first item has no gap before it
            if channels and rng.random() < params.channel_share:
                parts = [opening]
                for event in range(start, stop):
                    parts.append(stream.tokens[max(skip, stream.starts[event]) : stream.starts[event + 1]])
                    parts.append(channels.get(events.rows[event], opening[:0]))
                tokens = np.concatenate(parts)[: params.max_tokens]
            else:
                tokens = np.concatenate([opening, stream.tokens[skip : stream.starts[stop]]])[: params.max_tokens]
            builder.add_sequence(tokens, "behaviour")
            num_behaviour += 1
    # 2. Metadata: every item with every schema that it has a text for, shuffled, taken round and round.
    schemas = [
        (name, column, row) for column in encoded for row in sorted(encoded[column]) for name in (column, "naming")
    ]
    order = rng.permutation(len(schemas)) if schemas else np.zeros(0, dtype=np.int64)
    wanted = num_behaviour or len(schemas)
    sid_ids = words.sid_token_ids(material.sids.codes).tolist()
    for place in np.resize(order, wanted if len(schemas) else 0):
        name, column, row = schemas[place]
        before, after = phrase[name]
        if name == "naming":
            ids = [bos, *before, *encoded[column][row], *after, *sid_ids[row], eos]
        else:
            ids = [bos, *before, *sid_ids[row], *after, *encoded[column][row], eos]
        builder.add_sequence(np.array(ids, dtype=np.int32), "metadata")
    return builder.build()


# --- fine-tuning ---


@dataclass(frozen=True)
class Window:
    """One example. The trunk holds the events [start, stop).

    branches: events at which branches leave, ascending; the last one leaves at `stop`, whose event is a target.
    """

    start: int
    stop: int
    branches: tuple[int, ...]


def sft_examples(params: CorpusParams, material: Material, last_day: int, rng: np.random.Generator) -> Examples:
    """Windows of all users as trees; `kind` by the day of the last target, `weight` by its age. last_day: of 1970."""
    words, events = material.words, material.events
    writer = _TreeWriter(params, material, rng)
    builder = ExamplesBuilder()
    for user, user_id in enumerate(tqdm(events.user_ids, desc="corpus: windows", unit=" users", mininterval=1.0)):
        profile = Profile.render(words, material.profiles.get(user_id, {}))
        for window in writer.windows(int(events.user_starts[user]), int(events.user_starts[user + 1]), profile):
            age = last_day - int(events.timestamps[window.stop] // MS_PER_DAY)
            kind = "recent" if age < params.recent_days else "replay" if rng.random() < params.replay_share else "older"
            builder.add_tree(*writer.tree(window, profile), kind, 0.5 ** (age / params.half_life_days))
    return builder.build()


class _TreeWriter:
    """Cuts histories into windows and writes a window as tokens, spans and targets."""

    def __init__(self, params: CorpusParams, material: Material, rng: np.random.Generator) -> None:
        self.params, self.rng = params, rng
        self.words, self.events, self.stream = material.words, material.events, material.stream
        self.levels = self.words.space.num_levels
        self.longest = self.words.shape.max_history
        self.sid_ids = self.words.sid_token_ids(material.sids.codes).astype(np.int32)
        self.days = self.events.timestamps // MS_PER_DAY
        # Event → the first event behind it that is of another day or user.
        self.begins_day = self.events.firsts | np.diff(self.days, prepend=-1).astype(bool)
        borders = np.flatnonzero(self.begins_day)
        self.day_stop = np.repeat(np.append(borders[1:], len(self.days)), np.diff(np.append(borders, len(self.days))))
        template = self.words.shape.template
        # A context item that stands before the history is another one for every branch: no trunk can be shared.
        self.shared = "context" not in template or template.index("context") > template.index("history")
        needed = (
            2 * self._frame(self.words.shape.max_profile_tokens)
            + self.longest * (self.levels + 1)
            + params.day_targets * self.levels
        )
        if params.max_tokens < needed:
            raise InputError(
                f"corpus.max_tokens {params.max_tokens} cannot hold a prompt of {self.longest} items and its targets; "
                f"give {needed}, or lower vocabulary.max_history or corpus.day_targets"
            )

    def windows(self, begin: int, end: int, profile: Profile) -> list[Window]:
        """Windows of one user's events [begin, end), latest first.

        Every new day is a branch of exactly one window, of the latest that can hold it; the very first day is one with
        an empty history.
        """
        days = self.days[begin:end]
        pending = (begin + 1 + np.flatnonzero(days[1:] != days[:-1])).tolist()
        if not pending and end - begin > 1:
            pending = [end - 1]  # one day is all there is: its last item, given the others
        found = []
        frame = self._frame(len(profile.token_ids))
        while pending:
            stop = pending[-1]
            start = max(begin, stop - self.longest)
            room = self.params.max_tokens - frame - int(self.stream.starts[stop + 1] - self.stream.starts[start])
            branches: list[int] = []
            while pending and pending[-1] > start and (self.shared or not branches):
                cost = frame + self.levels * self._most_targets(pending[-1])
                if branches and cost > room:
                    break
                room -= cost
                branches.append(pending.pop())
            extra = [begin] if start == begin else []
            within = self.rng.integers(start + 1, stop + 1, self.params.session_branches)
            extra += within[~self.begins_day[within]].tolist()
            for event in extra if self.shared else []:
                cost = frame + self.levels * self._most_targets(event)
                if event not in branches and cost <= room:
                    room -= cost
                    branches.append(event)
            found.append(Window(start, stop, tuple(sorted(branches))))
        return found

    def tree(self, window: Window, profile: Profile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, spans and targets of a window, each (t,)."""
        words, stream = self.words, self.stream
        context = [] if self.shared else self.sid_ids[self.events.rows[window.stop - 1]].tolist()
        head = np.array(render_head(words, profile, context), dtype=np.int32)
        tokens, span, loss = [head], [np.zeros(len(head), dtype=np.int32)], [np.zeros(len(head), dtype=np.int8)]
        at = int(stream.starts[window.start + 1]) - self.levels  # a first item has no gap before it
        for event in window.branches:
            until = int(stream.starts[event + 1]) - self.levels  # the gap before the target belongs to the trunk
            trunk = stream.tokens[at:until]
            tokens.append(trunk)
            span.append(np.zeros(len(trunk), dtype=np.int32))
            targets = trunk >= words.sid_base if self.params.trunk_loss else np.zeros(len(trunk), dtype=bool)
            loss.append(targets.astype(np.int8))
            at = until
            context = self.sid_ids[self.events.rows[event - 1]].tolist() if event > window.start else []
            tail = np.array(render_tail(words, profile, context), dtype=np.int32)
            items = self.sid_ids[self._targets(event)].reshape(-1)
            tokens += [tail, items]
            span.append(np.arange(len(tail) + len(items), len(items), -1, dtype=np.int32))
            span.append(np.tile(np.arange(self.levels, 0, -1, dtype=np.int32), len(items) // self.levels))
            loss += [np.zeros(len(tail), dtype=np.int8), np.ones(len(items), dtype=np.int8)]
        joined = np.concatenate(span)
        trunk_place = joined == 0
        joined[trunk_place] = len(joined) - np.flatnonzero(trunk_place)
        return np.concatenate(tokens), joined, np.concatenate(loss)

    def _frame(self, num_profile_tokens: int) -> int:
        """Most tokens of a prompt beside its history: <user> …, <context> sid, two more."""
        return 4 + num_profile_tokens + self.levels

    def _most_targets(self, event: int) -> int:
        if not self.begins_day[event]:
            return 1
        return min(self.params.day_targets, int(self.day_stop[event]) - event)

    def _targets(self, event: int) -> np.ndarray:
        """Rows of a branch's targets: items of the day that begins at `event`, else the event's alone."""
        if not self.begins_day[event]:
            return self.events.rows[event : event + 1]
        rows = self.events.rows[event : self.day_stop[event]]
        distinct = rows[np.sort(np.unique(rows, return_index=True)[1])]
        if len(distinct) <= self.params.day_targets:
            return distinct
        return distinct[np.sort(self.rng.choice(len(distinct), self.params.day_targets, replace=False))]


if __name__ == "__main__":
    main(run, section="corpus")
