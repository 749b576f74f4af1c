"""Examples of continued pre-training: the schemas token by token, what is held out, general text."""

import datetime
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.corpus.cpt_examples import CptExamples, cpt_examples
from models.corpus.cpt_heldout import hold_out
from models.corpus.examples import KINDS, Examples
from models.corpus.material import MS_PER_DAY, CorpusParams, Material
from models.language.vocabulary import VocabularyParams
from models.language.vocabulary import run as run_vocabulary
from models.language.words import Vocabulary
from models.semantic_ids.table import SidTable
from plumline.errors import InputError
from plumline.schema import HISTORIES, ITEMS, conform
from plumline.sid import SidSpace
from plumline.tables import write_parquet

NUM_ITEMS, NUM_USERS = 120, 80
PARAMS = CorpusParams(max_tokens=200, heldout_share=0.1, feature_share=0.5)
EVENT_NUMBERS = ("watch_ratio", "rating")


@dataclass(frozen=True)
class NumberedWords:
    """A vocabulary that knows numbers: value v of a number is token first + v. The ids are free gap buckets."""

    words: Vocabulary
    numbers: Mapping[str, int]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.words, name)

    def number_tokens(self, name: str, values: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(values), -1, self.numbers[name] + np.nan_to_num(values)).astype(np.int64)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder, rng = tmp_path_factory.mktemp("cpt"), np.random.default_rng(4)
    ids = [f"i{n:03d}" for n in range(NUM_ITEMS)]
    titles = [f"thing {n}" for n in range(NUM_ITEMS)]
    topics = [["all", f"topic {n % 4}"] for n in range(NUM_ITEMS)]
    channels = [f"maker {n % 4}" if n % 3 else None for n in range(NUM_ITEMS)]
    prices = [float(n % 5) if n % 2 else None for n in range(NUM_ITEMS)]
    items = {"item_id": ids, "title": titles, "topics": topics, "channel": channels, "price": prices}
    table = conform(pa.table(items), ITEMS)
    day = datetime.date(2020, 1, 1)
    table = table.append_column("first_seen_day", pa.array([day] * NUM_ITEMS))
    write_parquet(folder / "catalog" / "items.parquet", table)
    write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": pa.array([], pa.string())}))
    for name in ("sids", "vocabulary"):
        (folder / name).mkdir()
    codes = np.stack([np.arange(NUM_ITEMS) % 4, rng.integers(0, 5, NUM_ITEMS), np.arange(NUM_ITEMS) // 4], axis=1)
    SidTable(SidSpace((4, 5, 30)), False, ids, codes.astype(np.int32)).save(folder / "sids")
    first = (day - datetime.date(1970, 1, 1)).days * MS_PER_DAY
    users = [f"u{n:03d}" for n in range(NUM_USERS)]
    lists = [rng.choice(ids, int(count)).tolist() for count in rng.integers(1, 30, NUM_USERS)]
    histories = {
        "user_id": users,
        "item_ids": lists,
        "timestamps": [[first + place * MS_PER_DAY for place in range(len(items))] for items in lists],
        "rewards": [[1.0] * len(items) for items in lists],
    }
    write_parquet(folder / "histories" / "histories.parquet", conform(pa.table(histories), HISTORIES))
    inputs = {name: folder / name for name in ("catalog", "histories", "sids")}
    told = VocabularyParams(text_tokens=300, max_history=8, num_buckets=0)
    run_vocabulary(told, **inputs, base=None, out=folder / "vocabulary")
    return Material.load(**inputs, vocabulary=folder / "vocabulary")


@pytest.fixture(scope="module")
def numbered(material: Material) -> Material:
    """The same with numbers of events (none for every third one) and of items."""
    count = len(material.events.rows)
    known = np.where(np.arange(count) % 3 == 0, np.nan, np.arange(count) % 2).astype(np.float32)
    events = replace(material.events)
    object.__setattr__(events, "numbers", {"watch_ratio": known, "rating": known})
    gap = material.words.gap_base
    first = {"watch_ratio": gap + 6, "rating": gap + 8, "item_price": gap, "item_age_days": gap}
    words: Any = NumberedWords(material.words, first)
    return replace(material, words=words, events=events)


def make(material: Material, seed: int = 0, **params: Any) -> CptExamples:
    return cpt_examples(PARAMS.model_copy(update=params), material, np.random.default_rng(seed))


def texts(material: Material, examples: Examples, *kinds: str) -> list[str]:
    rows = examples.of_kinds(*kinds) if kinds else np.arange(examples.num_examples)
    found = [examples.tokens[examples.offsets[row] : examples.offsets[row + 1]] for row in rows]
    decode = material.words.tokenizer.decode
    return [decode(tokens.tolist(), spaces_between_special_tokens=False) for tokens in found]


def sid(material: Material, row: int, levels: int = 3) -> str:
    return material.words.space.format(material.sids.codes[row].tolist()[:levels])


def test_every_schema_is_written_as_it_says(material: Material) -> None:
    found = set(texts(material, make(material).train, "metadata"))
    table = material.sids
    secret = set(hold_out(table.item_ids, 0.1, "item").tolist())
    row = next(row for row in range(NUM_ITEMS) if row not in secret and row % 3)
    whole, title, maker = sid(material, row), f"thing {row}", f"maker {row % 4}"
    everything: set[str] = set()
    for seed in range(4):
        everything |= set(texts(material, make(material, seed).train, "metadata"))
    assert found < everything
    wanted = {
        f"<bos>Item {whole} has title: {title}<eos>",
        f"<bos>The topics of item {whole} are: all, topic {row % 4}<eos>",
        f"<bos>Item {whole} is from: {maker}<eos>",
        f"<bos>{title} is item {whole}<eos>",
    }
    assert wanted & everything
    starts = Counter(text.split("<", 2)[1].removeprefix("bos>").split("<")[0] for text in everything)
    assert {"Item ", "The topics of item ", "Among the items ", "Most items that begin with "} <= set(starts)
    codes = [text for text in everything if "Among" in text]
    cuts = {f"<bos>Among the items {sid(material, row, cut)} the one with title: {title} goes on: " for cut in (1, 2)}
    mine = [text for text in codes if f" {title} " in text]
    assert all(any(text == cut + whole.removeprefix(cut.split()[3]) + "<eos>" for cut in cuts) for text in mine)
    assert codes


def test_prefixes_are_named_by_topic_and_channel_but_not_by_what_all_have(material: Material) -> None:
    found = [text for seed in range(6) for text in texts(material, make(material, seed).train) if "begin with" in text]
    assert "<bos>Most items that begin with <a_2> have the topic: topic 2<eos>" in found
    assert "<bos>Most items that begin with <a_1> are from: maker 1<eos>" in found
    assert not any("topic: all" in text for text in found)


def test_half_and_half_to_the_example_with_general_text_beside(material: Material, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(f"Paragraph {n} of <a_1> the world." for n in range(50)) + "\n\n")
    made = make(material, general_text=tmp_path / "text", general_share=0.2)
    counts = Counter(KINDS[kind] for kind in made.train.kind)
    assert counts["behaviour"] == counts["metadata"] > 80
    assert counts["general"] == round(0.25 * 2 * counts["metadata"])
    trained, unread = (set(texts(material, part, "general")) for part in (made.train, made.heldout))
    assert len(unread) == 5
    assert len(trained | unread) <= 50
    assert not trained & unread
    for row in made.train.of_kinds("general"):
        tokens = made.train.tokens[made.train.offsets[row] : made.train.offsets[row + 1]]
        assert (tokens < material.words.sid_base).all()


def test_general_text_that_is_not_there_is_refused(material: Material, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="general_text"):
        make(material, general_text=tmp_path / "nowhere")
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(InputError, match="no line"):
        make(material, general_text=tmp_path / "empty")


def test_texts_of_held_out_items_are_in_no_example_with_their_sids(material: Material) -> None:
    """Looked for in every sentence of several seeds; the SIDs themselves are in histories."""
    secret = hold_out(material.sids.item_ids, PARAMS.heldout_share, "item").tolist()
    assert len(secret) == 12
    made = [make(material, seed, feature_share=1.0) for seed in range(5)]
    metadata = [text for one in made for text in texts(material, one.train, "metadata")]
    behaviour = "".join(text for one in made for text in texts(material, one.train, "behaviour"))
    for row in secret:
        assert not any(sid(material, row) in text for text in metadata)
        assert not any(f"thing {row}<" in text or f"thing {row} " in text for text in metadata)
        assert f"{sid(material, row)}maker" not in behaviour
    assert sum(sid(material, row) in behaviour for row in secret) > 9
    open_rows = [row for row in range(NUM_ITEMS) if row not in secret and row % 3]
    assert sum(f"{sid(material, row)}maker {row % 4}" in behaviour for row in open_rows) > 0.9 * len(open_rows)


def test_histories_of_held_out_users_are_in_no_example(material: Material) -> None:
    events = material.events
    able = np.flatnonzero(np.diff(events.user_starts) > 1)
    secret = able[hold_out([events.user_ids[user] for user in able], PARAMS.heldout_share, "user")]
    made = make(material, feature_share=0.0)
    train = [text.split("<eos>")[0] for text in texts(material, made.train, "behaviour")]
    asked = texts(material, made.heldout, "behaviour")
    assert len(asked) == len(secret) == round(0.1 * len(able))
    for user, text in zip(secret, asked, strict=True):
        begin, end = events.user_starts[user : user + 2]
        last = events.rows[max(begin, end - 4) : end]
        ending = "<gap_4>".join(sid(material, row) for row in last)
        assert text.endswith(ending)
        assert len(last) < 4 or not any(ending in other for other in train)


def test_what_is_asked_of_the_held_out(material: Material) -> None:
    heldout, words = make(material, feature_share=1.0).heldout, material.words
    assert set(heldout.kind) == {KINDS.index(k) for k in ("behaviour", "naming", "title", "topics", "channel")}
    for row in range(heldout.num_examples):
        inside = slice(heldout.offsets[row], heldout.offsets[row + 1])
        tokens, targets = heldout.tokens[inside], heldout.loss[inside] == 1
        kind = KINDS[heldout.kind[row]]
        if kind == "behaviour":
            assert targets.sum() == (tokens >= words.sid_base).sum() - 3
            assert (tokens[targets] >= words.sid_base).all()
        elif kind == "naming":
            assert (targets == (tokens >= words.sid_base)).all()
        else:
            said = words.tokenizer.decode(tokens[targets].tolist())
            assert said.removesuffix("<eos>").startswith(
                {"title": "thing ", "topics": "all", "channel": "maker "}[kind]
            )
            assert said.endswith("<eos>")


def test_nothing_is_held_out_on_request(material: Material) -> None:
    made = make(material, heldout_share=0.0)
    assert made.heldout.num_examples == 0
    assert made.train.of_kinds("behaviour").size > make(material).train.of_kinds("behaviour").size


def test_features_stand_behind_their_items(numbered: Material) -> None:
    """Item by item: SID, channel, numbers of the event, gap; nothing where nothing is known."""
    made = make(numbered, feature_share=1.0, max_tokens=512)
    decode = numbered.words.tokenizer.decode
    events, secret = numbered.events, set(hold_out(numbered.sids.item_ids, 0.1, "item").tolist())
    wanted = set()
    for begin, end in zip(events.user_starts[:-1], events.user_starts[1:], strict=True):
        start = max(begin, end - 8)
        text = "<bos>wh ="
        for event in range(start, end):
            row = int(events.rows[event])
            text += "<gap_4>" * int(event > start) + sid(numbered, row)
            text += f"maker {row % 4}" if row % 3 and row not in secret else ""
            text += "" if event % 3 == 0 else f"<gap_{6 + event % 2}><gap_{8 + event % 2}>"
        wanted.add(text)
    train = made.train
    rows = train.of_kinds("behaviour")
    found = {
        decode(train.tokens[train.offsets[r] : train.offsets[r + 1]].tolist(), spaces_between_special_tokens=False)
        for r in rows
    }
    assert len(wanted & found) >= 0.8 * NUM_USERS


def test_numbers_of_items_are_said(numbered: Material) -> None:
    said = {t for seed in range(4) for t in texts(numbered, make(numbered, seed).train) if "in numbers" in t}
    assert said
    last = int(numbered.events.timestamps.max()) // MS_PER_DAY
    age = last - (datetime.date(2020, 1, 1) - datetime.date(1970, 1, 1)).days
    assert (numbered.item_numbers["item_age_days"] == age).all()
    assert np.isnan(numbered.item_numbers["duration_s"]).all()
    assert np.isnan(numbered.item_numbers["item_price"][::2]).all()


def test_windows_fit_and_lose_no_event_but_a_lone_first_one(numbered: Material) -> None:
    for tokens in (40, 64, 200):
        made = make(numbered, feature_share=1.0, max_tokens=tokens, heldout_share=0.0)
        rows = made.train.of_kinds("behaviour")
        assert made.train.lengths[rows].max() <= tokens
        starts = numbered.events.user_starts
        items = (made.train.tokens >= numbered.words.sid_base) & np.isin(
            np.repeat(made.train.kind, made.train.lengths), [KINDS.index("behaviour")]
        )
        assert len(numbered.events.rows) - len(starts) <= items.sum() / 3 <= len(numbered.events.rows)


def test_equal_seeds_give_equal_examples(material: Material) -> None:
    one, two, other = make(material), make(material), make(material, seed=1)
    assert one.train.tokens.tolist() == two.train.tokens.tolist() != other.train.tokens.tolist()
    held = [sorted(texts(material, part.heldout, "title")) for part in (one, other)]
    assert held[0] == held[1]
