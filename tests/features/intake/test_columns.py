import pytest

from features.intake.columns import ALIASES, choose_columns, knows
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, USERS, Contract

COLUMNS = ("user_id", "item_id", "timestamp")


def notes(columns: tuple[str, ...], contract: Contract, **mapping: str) -> list[str]:
    return [str(finding) for finding in choose_columns(columns, contract, mapping).findings]


def test_own_names_come_first_then_aliases_and_what_is_left_is_said() -> None:
    columns = ("item_id", "brand", "channel", "categories", "rank", "emb_x", "tag_y", "emb_")
    chosen = choose_columns(columns, ITEMS, {"title": "rank"})
    assert chosen.sources == {
        "title": ("rank",),
        "item_id": ("item_id",),
        "channel": ("channel",),
        "emb_x": ("emb_x",),
        "tag_y": ("tag_y",),
        "topics": ("categories",),
    }
    assert [str(finding) for finding in chosen.findings] == [
        "items: topics is taken from column categories",
        "items: left out, not in the contract: brand, emb_",
    ]


def test_a_mapped_column_is_not_taken_twice_by_an_alias() -> None:
    assert "topics" not in choose_columns(("item_id", "genres"), ITEMS, {"title": "genres"}).sources


def test_an_empty_mapping_ignores_a_column() -> None:
    chosen = choose_columns(("item_id", "price", "brand"), ITEMS, {"price": "", "channel": ""})
    assert chosen.sources == {"item_id": ("item_id",)}
    assert notes(("item_id", "price"), ITEMS, price="") == []


def test_topics_of_several_columns_and_the_first_of_some() -> None:
    columns = ("item_id", "a", "b", "a+c", "title|x", "?d+e", "d", "e", "f.g", "f")
    assert choose_columns(columns, ITEMS, {"topics": "a+b"}).sources["topics"] == ("a", "b")
    assert choose_columns(columns, ITEMS, {"topics": "a+c"}).sources["topics"] == ("a+c",)
    assert choose_columns(columns, ITEMS, {"title": "zz|b|a"}).sources["title"] == ("b",)
    assert choose_columns(columns, ITEMS, {"title": "title|x"}).sources["title"] == ("title|x",)
    made = {"topics": "?d+e", "title": "f.g"}
    assert notes(columns, ITEMS, **made) == ["items: left out, not in the contract: a, b, a+c, title|x"]


def test_users_keep_every_column_under_its_name() -> None:
    chosen = choose_columns(("who", "age", "zip code"), USERS, {"user_id": "who", "years": "age"})
    assert chosen.sources == {"user_id": ("who",), "years": ("age",), "zip code": ("zip code",)}
    assert chosen.findings == ()


@pytest.mark.parametrize(
    ("columns", "mapping", "said"),
    [
        (COLUMNS, {"title": "x"}, "--map title=x: events have no 'title'; there are event_id, user_id, item_id"),
        (COLUMNS, {"price": "x"}, "--map price=x: events have no column 'x'; there are user_id, item_id, timestamp"),
        (COLUMNS, {"price": "user_id+x"}, "--map price=user_id+x: events have no column 'x'"),
        (
            COLUMNS,
            {"price": "user_id+item_id"},
            "--map price=user_id+item_id: only topics can be made of",
        ),
        (
            ("item_id", "ts"),
            {},
            "events: no column 'user_id'; there are item_id, ts; rename one with --map user_id=",
        ),
        (("movieId", "userId", "ts"), {}, "there are movieId, userId, ts; rename one with --map user_id=userId"),
        (("USER-ID", "uid", "item_id", "ts"), {}, "--map user_id=USER-ID"),
        (
            ("25", "1", "pv", "1511560457"),
            {},
            "with --map user_id=COLUMN; a file without a header needs --columns",
        ),
        (("user_id", "a\nb"), {}, "events: no column 'item_id'; there are user_id, a b; rename one"),
        (tuple(f"c{n}" for n in range(50)), {}, "c38, c39 … (50 in all); rename"),
    ],
)
def test_what_cannot_be_chosen(columns: tuple[str, ...], mapping: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as error:
        choose_columns(columns, EVENTS, mapping)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_event_id_may_be_missing_and_a_timestamp_may_not() -> None:
    assert choose_columns(COLUMNS, EVENTS, {}).sources.keys() == {"user_id", "item_id", "timestamp"}
    with pytest.raises(InputError, match="no column 'timestamp'"):
        choose_columns(COLUMNS, EVENTS, {"timestamp": ""})


@pytest.mark.parametrize(
    ("contract", "name", "alias"),
    [(c, name, alias) for c in (ITEMS, EVENTS) for name, aliases in ALIASES[c.name].items() for alias in aliases],
)
def test_every_other_name_of_a_column(contract: Contract, name: str, alias: str) -> None:
    columns = tuple(column for column in (*contract.required, alias) if column != name)
    chosen = choose_columns(columns, contract, {})
    assert chosen.sources[name] == (alias,)
    assert [str(f) for f in chosen.findings] == [f"{contract.name}: {name} is taken from column {alias}"]


def test_which_names_a_contract_knows() -> None:
    assert [knows(ITEMS, name) for name in ("title", "emb_x", "tag_x", "emb_", "x")] == [True, True, True, False, False]
    assert [knows(USERS, name) for name in ("user_id", "x")] == [True, False]
