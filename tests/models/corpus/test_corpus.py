"""Examples: what a target's path says is what a server would say, and nothing looks into the future."""

import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.catalog import Catalog
from models.corpus.corpus import run
from models.corpus.examples import KINDS, Examples
from models.corpus.material import MS_PER_DAY, CorpusParams, Events, Material, item_texts
from models.corpus.sft_examples import sft_examples
from models.language.facts import CHANNEL_TOKENS, ItemTexts
from models.language.prompt import MS_PER_HOUR, most_event_tokens, render_events, render_prompt
from models.language.vocabulary import VocabularyParams
from models.language.vocabulary import run as run_vocabulary
from models.language.words import Vocabulary, read_profiles
from models.semantic_ids.table import SidTable
from plumline.artifact import read_json, sha256_file
from plumline.errors import CorruptArtifactError, InputError
from plumline.schema import HISTORIES, ITEMS, conform
from plumline.sid import SidSpace
from plumline.tables import save_arrays, write_parquet

AS_OF = datetime.date(2020, 3, 1)
LAST_DAY = (AS_OF - datetime.date(1970, 1, 1)).days
SPACE = SidSpace((6, 5, 4))


@dataclass(frozen=True)
class Place:
    """Folders of the inputs, and what is in the histories: user → [(item, epoch ms)]; user → number → values."""

    folder: Path
    histories: dict[str, list[tuple[str, int]]]
    numbers: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)

    def inputs(self) -> dict[str, Path]:
        return {name: self.folder / name for name in ("catalog", "histories", "sids", "vocabulary")}


def make_place(
    folder: Path, num_users: int = 40, longest: int = 60, *, numbered: bool = False, **vocabulary: Any
) -> Place:
    rng = np.random.default_rng(8)
    ids = [f"i{n:02d}" for n in range(30)]
    items = {"item_id": ids, "title": [None if n % 7 == 0 else f"thing <a_1> {n}" for n in range(30)]}
    items |= {
        "topics": [["x", f"t{n % 3}"] for n in range(30)],
        "channel": ["maker" if n % 2 else None for n in range(30)],
    }
    write_parquet(folder / "catalog" / "items.parquet", conform(pa.table(items), ITEMS))
    users = [f"u{n:03d}" for n in range(num_users)]
    countries = [["France", "Peru", None][n % 3] for n in range(num_users)]
    write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": users, "country": countries}))
    for name in ("sids", "vocabulary"):
        (folder / name).mkdir(parents=True)
    codes = rng.integers(0, SPACE.sizes, (29, 3)).astype(np.int32)
    SidTable(SPACE, False, ids[:29], codes).save(folder / "sids")  # i29 has no SID
    histories = {}
    for number, user in enumerate(users):
        count = int(rng.integers(1, longest)) if number else longest
        day = LAST_DAY - np.sort(rng.integers(0, 30, count))[::-1]
        if number % 5 == 1:
            day[:] = day[-1]  # everything on one day
        moments = np.sort(day * MS_PER_DAY + rng.integers(0, MS_PER_DAY // MS_PER_HOUR, count) * MS_PER_HOUR // 2)
        histories[user] = list(zip(rng.choice(ids, count).tolist(), moments.tolist(), strict=True))
    numbers = {user: draw_numbers(rng, len(events)) for user, events in histories.items()} if numbered else {}
    write_histories(folder / "histories", histories, numbers)
    told = VocabularyParams(**{"text_tokens": 300, "max_history": 12, **vocabulary})
    inputs = {name: folder / name for name in ("catalog", "histories", "sids")}
    run_vocabulary(told, **inputs, base=None, out=folder / "vocabulary")
    return Place(folder, histories, numbers)


def draw_numbers(rng: np.random.Generator, count: int) -> dict[str, list[float | None]]:
    """Watch ratios of every other event, and prices that are not floats of 32 bits; of some users no list at all."""
    ratios = [float(value) if value < 0.5 else None for value in rng.random(count)]
    return {"watch_ratio": ratios, **({"price": rng.choice([0.1, 0.7, 2.95], count).tolist()} if count % 3 else {})}


def write_histories(
    folder: Path,
    histories: dict[str, list[tuple[str, int]]],
    numbers: dict[str, dict[str, list[float | None]]] | None = None,
) -> None:
    table = {
        "user_id": list(histories),
        "item_ids": [[item for item, _ in events] for events in histories.values()],
        "timestamps": [[moment for _, moment in events] for events in histories.values()],
        "rewards": [[1.0] * len(events) for events in histories.values()],
    }
    for name in ("watch_ratio", "price") if numbers else ():
        table[name] = [numbers[user].get(name) for user in histories]
    write_parquet(folder / "histories.parquet", conform(pa.table(table), HISTORIES))


def make(place: Place, out: Path, seed: int = 3, **params: Any) -> Path:
    out.mkdir(parents=True)
    run(CorpusParams(**{"max_tokens": 256, **params}), **place.inputs(), as_of=AS_OF, seed=seed, out=out)
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def corpus(place: Place) -> Path:
    return make(place, place.folder / "corpus")


def trees(examples: Examples) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for begin, end in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        yield examples.tokens[begin:end], examples.span[begin:end], examples.loss[begin:end]


def path_to(span: np.ndarray, place: int) -> np.ndarray:
    """Tokens that `place` sees before itself, straight from the meaning of span."""
    return np.array([k for k in range(place) if place < k + span[k]], dtype=int)


def branch_targets(words: Vocabulary, examples: Examples) -> Iterator[tuple[list[int], tuple[int, ...]]]:
    """Path and codes of every target behind <next>."""
    for tokens, span, loss in trees(examples):
        for place in range(len(tokens)):
            path = path_to(span, place)
            if len(path) and tokens[path[-1]] == words.control["<next>"]:
                sid = words.space.codes(tokens[place : place + 3], words.sid_base)
                assert loss[place : place + 3].all()
                yield tokens[path].tolist(), tuple(sid.tolist())


def served(place: Place, words: Vocabulary) -> dict[tuple[int, ...], set[tuple[int, ...]]]:
    """What a server would be asked at every event of every history: prompt → SIDs that could be right."""
    table, catalog = SidTable.load(place.folder / "sids"), Catalog.load(place.folder / "catalog")
    profiles, texts = read_profiles(catalog), ItemTexts.of(words, catalog.items)
    found: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for user, events in place.histories.items():
        places = [place for place, (item, _) in enumerate(events) if item in table.codes_of]
        known = [(table.codes_of[events[place][0]], events[place][1]) for place in places]
        facts = [texts.facts(events[place][0]) for place in places]
        told = {name: [values[p] for p in places] for name, values in place.numbers.get(user, {}).items()}
        for number, (codes, moment) in enumerate(known):
            for start in {0, *range(max(0, number - 12), number)}:  # a window may begin later than a server's history
                some = slice(start, number)
                prompt = render_prompt(
                    words,
                    known[some],
                    profiles[user],
                    at_ms=moment,
                    facts=facts[some],
                    numbers={name: values[some] for name, values in told.items()},
                )
                same_day = [c for c, m in known[number:] if m // MS_PER_DAY == moment // MS_PER_DAY]
                begins = number == 0 or known[number - 1][1] // MS_PER_DAY != moment // MS_PER_DAY
                found.setdefault(tuple(prompt), set()).update(same_day if begins else [codes])
    return found


@pytest.mark.parametrize(
    "template",
    [("history", "user", "context"), ("user", "history", "context"), ("user", "context", "history"), ("history",)],
)
def test_training_and_serving_render_the_same(tmp_path: Path, template: tuple[str, ...]) -> None:
    place = make_place(tmp_path, num_users=15, template=template)
    words = Vocabulary.load(place.folder / "vocabulary")
    allowed = served(place, words)
    sft = Examples.load(make(place, tmp_path / "corpus", session_branches=2) / "sft.npz")
    found = list(branch_targets(words, sft))
    assert len(found) > 60
    for path, codes in found:
        assert codes in allowed[tuple(path)]


@pytest.mark.parametrize(
    ("history_features", "context_features", "template"),
    [
        (("channel",), (), ("history", "user", "context")),
        (("price", "channel", "watch_ratio"), ("channel", "title"), ("history", "user", "context")),
        (("watch_ratio", "quantity"), ("title",), ("user", "context", "history")),
        ((), ("title", "channel"), ("user", "history", "context")),
        (("price",), (), ("history",)),
    ],
)
def test_training_and_serving_tell_the_same(
    tmp_path: Path, history_features: tuple[str, ...], context_features: tuple[str, ...], template: tuple[str, ...]
) -> None:
    """As above, with features: nobody knows a quantity, so it is nowhere."""
    features = {"history_features": history_features, "context_features": context_features}
    place = make_place(tmp_path, num_users=15, numbered=True, template=template, **features)
    words = Vocabulary.load(place.folder / "vocabulary")
    assert (words.shape.history_features, words.shape.context_features) == (history_features, context_features)
    sft = Examples.load(make(place, tmp_path / "corpus", session_branches=2, max_tokens=400) / "sft.npz")
    assert sft.lengths.max() <= 400
    allowed = served(place, words)
    found = list(branch_targets(words, sft))
    assert len(found) > 60
    for path, codes in found:
        assert codes in allowed[tuple(path)]
    plain = replace(words, shape=replace(words.shape, history_features=(), context_features=()))
    bare = served(place, plain)
    assert len({tuple(path) for path, _ in found} - bare.keys()) > 20
    # Only SIDs are targets, in the trunk as well.
    assert (sft.tokens[sft.loss.astype(bool)] >= words.sid_base).all()


def test_a_prompt_with_features_needs_room(tmp_path: Path) -> None:
    place = make_place(tmp_path, num_users=6, numbered=True, history_features=("channel", "price"), max_history=12)
    words = Vocabulary.load(place.folder / "vocabulary")
    assert most_event_tokens(words) == 1 + 3 + CHANNEL_TOKENS + 1
    needed = 2 * (4 + words.shape.max_profile_tokens + 3) + 12 * most_event_tokens(words) + 8 * 3
    with pytest.raises(InputError, match=rf"give {needed}, .*history_features"):
        make(place, tmp_path / "small", max_tokens=needed - 1)
    make(place, tmp_path / "corpus", max_tokens=needed)


def test_every_new_day_is_learned_from_exactly_once(place: Place, corpus: Path) -> None:
    """Of every user and day: as many branch targets as the day has items, up to day_targets."""
    words, table = Vocabulary.load(place.folder / "vocabulary"), SidTable.load(place.folder / "sids")
    sft = Examples.load(make(place, corpus.parent / "days", session_branches=0, day_targets=3) / "sft.npz")
    expected = 0
    for events in place.histories.values():
        known = [(item, moment // MS_PER_DAY) for item, moment in events if item in table.codes_of]
        days = sorted({day for _, day in known})
        expected += sum(min(3, len({item for item, d in known if d == day})) for day in days[1:])
        expected += len(days) == 1 and len(known) > 1
        if 1 <= sum(day == days[0] for _, day in known) <= 12 and len(known) > 1:
            expected += min(3, len({item for item, d in known if d == days[0]}))  # the cold start
    found = len(list(branch_targets(words, sft)))
    assert abs(found - expected) <= 0.05 * expected  # the cold start only where its window reaches back so far


def test_examples_fit_and_are_trees(corpus: Path) -> None:
    for name in ("cpt", "cpt_heldout", "sft"):
        examples = Examples.load(corpus / f"{name}.npz")
        assert examples.lengths.max() <= 256
        for tokens, span, loss in trees(examples):
            end = np.arange(len(tokens)) + span
            assert (span >= 1).all()
            assert end.max() == end[0] == len(tokens)
            assert loss[0] == 0
            for k in range(len(tokens)):  # whoever sees k ends no later than k's own parent does
                path = path_to(span, k)
                assert not len(path) or end[k] <= end[path[-1]]


def test_only_sids_are_targets_of_fine_tuning(place: Place, corpus: Path) -> None:
    words = Vocabulary.load(place.folder / "vocabulary")
    sft = Examples.load(corpus / "sft.npz")
    assert (sft.tokens[sft.loss == 1] >= words.sid_base).all()
    without = Examples.load(make(place, corpus.parent / "trunkless", trunk_loss=False) / "sft.npz")
    assert len(without.tokens) <= len(sft.tokens)  # the newest day stands in a trunk only where it is a target there
    assert without.loss.sum() < sft.loss.sum()
    assert without.loss.sum() == 3 * len(list(branch_targets(words, without)))


def test_kinds_by_day_and_weights_by_age(corpus: Path) -> None:
    sft = Examples.load(corpus / "sft.npz")
    recent, replay, older = (sft.of_kinds(kind) for kind in ("recent", "replay", "older"))
    assert len(recent)
    assert len(older)
    assert (sft.weight[recent] == 1.0).all()
    assert (sft.weight[np.concatenate([older, replay])] < 1.0).all()
    report = read_json(corpus / "report.json")["sft"]
    assert report["kinds"]["recent"]["examples"] == len(recent)
    assert sum(kind["examples"] for kind in report["kinds"].values()) == report["examples"] == sft.num_examples


def test_recent_days_and_replay_share(place: Place, tmp_path: Path) -> None:
    everything = Examples.load(make(place, tmp_path / "a", recent_days=365) / "sft.npz")
    assert set(everything.kind) == {KINDS.index("recent")}
    replayed = Examples.load(make(place, tmp_path / "b", replay_share=1.0) / "sft.npz")
    assert set(replayed.kind) == {KINDS.index("recent"), KINDS.index("replay")}


def test_half_of_the_cpt_examples_are_metadata(place: Place, corpus: Path) -> None:
    words = Vocabulary.load(place.folder / "vocabulary")
    cpt = Examples.load(corpus / "cpt.npz")
    behaviour, metadata = (cpt.of_kinds(kind) for kind in ("behaviour", "metadata"))
    assert len(behaviour) == len(metadata) > 50
    texts = [words.tokenizer.decode(t.tolist()).replace("> <a_", "><a_") for t, _, _ in trees(cpt)]
    parts = (
        "wh =<",
        "> has title: thing <a_1> 2",
        "The topics of item <",
        "> are: x, t2<eos>",
        "> is from: maker",
        " is item <",
    )
    for part in parts:
        assert any(part in text for text in texts), part
    assert any("maker" in texts[row] for row in behaviour)
    for row in metadata:  # a title that spells a SID token stays text: one SID an example
        tokens = cpt.tokens[cpt.offsets[row] : cpt.offsets[row + 1]]
        assert (tokens >= words.sid_base).sum() == 3 or "begin with" in texts[row]
    assert (cpt.loss.sum() == len(cpt.tokens) - cpt.num_examples).all()


def test_a_catalogue_without_text_gives_behaviour_only(tmp_path: Path) -> None:
    place = make_place(tmp_path, num_users=6)
    bare = pa.table({"item_id": [f"i{n:02d}" for n in range(30)]})
    write_parquet(tmp_path / "catalog" / "items.parquet", conform(bare, ITEMS))
    cpt = Examples.load(make(place, tmp_path / "corpus") / "cpt.npz")
    assert set(cpt.kind) == {KINDS.index("behaviour")}


def test_equal_seeds_give_equal_bytes(place: Place, corpus: Path, tmp_path: Path) -> None:
    again, other = make(place, tmp_path / "again"), make(place, tmp_path / "other", seed=4)
    for name in ("cpt.npz", "cpt_heldout.npz", "sft.npz", "report.json"):
        assert sha256_file(again / name) == sha256_file(corpus / name)
    assert sha256_file(other / "cpt.npz") != sha256_file(corpus / "cpt.npz")


def test_unknown_items_are_counted(place: Place, corpus: Path) -> None:
    report = read_json(corpus / "report.json")
    unknown = sum(item == "i29" for events in place.histories.values() for item, _ in events)
    assert report["unknown_events"] == unknown > 0
    assert report["events"] == sum(map(len, place.histories.values())) - unknown


def test_the_future_is_refused(tmp_path: Path) -> None:
    place = make_place(tmp_path, num_users=3)
    late = (LAST_DAY + 1) * MS_PER_DAY
    write_histories(tmp_path / "histories", {"u000": [("i01", late - 1), ("i02", late)]})
    with pytest.raises(InputError, match="--as-of 2020-03-01"):
        make(place, tmp_path / "corpus")


def test_too_few_tokens_for_a_prompt_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_history"):
        make(place, tmp_path / "corpus", max_tokens=60)


def test_vocabulary_of_another_sid_space_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "sids").mkdir()
    SidTable(SidSpace((7, 5, 4)), False, ["i00"], np.zeros((1, 3), dtype=np.int32)).save(tmp_path / "sids")
    with pytest.raises(InputError, match="take one run's"):
        Material.load(**{**place.inputs(), "sids": tmp_path / "sids"})


def test_damaged_arrays_are_refused(corpus: Path, tmp_path: Path) -> None:
    sft = Examples.load(corpus / "sft.npz")
    replace(sft, loss=sft.loss[:-1]).save(tmp_path / "short.npz")
    save_arrays(tmp_path / "other.npz", tokens=sft.tokens)
    (tmp_path / "cut.npz").write_bytes((corpus / "sft.npz").read_bytes()[:5000])
    for name in ("short", "other", "cut"):
        with pytest.raises(CorruptArtifactError, match=name):
            Examples.load(tmp_path / f"{name}.npz")


def test_a_hundred_thousand_events_take_seconds(place: Place) -> None:
    """The goal is 800,000 events in 15 s of one core; held here with a wide margin for a busy machine."""
    words, table = Vocabulary.load(place.folder / "vocabulary"), SidTable.load(place.folder / "sids")
    rng = np.random.default_rng(0)
    users, each = 700, 143
    moments = np.sort(rng.integers(0, LAST_DAY * MS_PER_DAY, (users, each)), axis=1).reshape(-1)
    starts = np.arange(0, users * each + 1, each)
    rows, rewards = rng.integers(0, 29, users * each), np.ones(users * each, dtype=np.float32)
    events = Events(rows, moments, [str(n) for n in range(users)], starts, 0, rewards)
    stream = render_events(words, table.codes[events.rows], events.timestamps, events.firsts)
    texts = item_texts(Catalog.load(place.folder / "catalog"), table)
    material = Material(words, table, events, stream, {}, texts)
    began = time.process_time()
    sft = sft_examples(CorpusParams(max_tokens=256), material, LAST_DAY, rng)
    assert time.process_time() - began < 20
    assert sft.num_examples > users
