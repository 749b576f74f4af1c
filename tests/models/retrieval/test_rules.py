import operator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.bits import Bits
from models.retrieval.rules import And, Compare, Fresh, Has, Named, Not, Or, Rule, all_of, evaluate, explain, parse
from models.retrieval.tags import Tags
from plumline.errors import InputError

EXAMPLE = 'fresh(7d) & ~seen & (category("a") | category("b")) & region("DE") & price < 20'
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
OPS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}


# --- text ---


def test_precedence_and_atoms() -> None:
    assert parse(EXAMPLE) == And(
        (
            Fresh(7 * DAY),
            Not(Named("seen")),
            Or((Has("category", ("a",)), Has("category", ("b",)))),
            Has("region", ("DE",)),
            Compare("price", "<", 20),
        )
    )
    assert parse("a|b&c|d") == Or((Named("a"), And((Named("b"), Named("c"))), Named("d")))
    assert parse("~a & b") == And((Not(Named("a")), Named("b")))
    assert parse("~price<-1.5e-3") == Not(Compare("price", "<", -0.0015))
    assert parse("((a & (b & c)))\n& d") == And(tuple(map(Named, "abcd")))
    assert parse(r"""t('a"b', "it's", 'it\'s', "\\\"")""") == Has("t", ('a"b', "it's", "it's", '\\"'))
    assert parse("number < 1 & end") == And((Compare("number", "<", 1), Named("end")))  # words of ours are no keywords
    assert parse("größe == .5") == Compare("größe", "==", 0.5)


def test_canonical_text() -> None:
    assert str(parse(EXAMPLE)) == EXAMPLE
    assert str(parse("~ (a|b)&(c)&'x'".replace("'x'", "t('x')"))) == '~(a | b) & c & t("x")'
    for text, said in {"2w": "14d", "36h": "36h", "90m": "90m", "0.5h": "30m", "0.5m": "0.5m", "1.5d": "36h"}.items():
        assert str(parse(f"fresh({text})")) == f"fresh({said})"
    assert str(parse("p < 20.0")) == "p < 20"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "character 1: found the end, expected a condition like"),
        ("a &", "character 4: found the end, expected a condition"),
        ("a b", "character 3: found 'b', expected & or | or the end"),
        ("(a", "character 3: found the end, expected & or | or )"),
        ("a)", "character 2: found ')', expected & or | or the end"),
        ("price < x", "character 9: found 'x', expected a number"),
        ("price < number", "character 9: found 'number', expected a number"),
        ("price < 1e999", "character 9: found '1e999', expected a number below"),
        ("price = 1", "character 7: found '='"),
        ("t()", "character 3: found ')', expected a text in quotes"),
        ("t(x)", "character 3: found 'x', expected a text in quotes"),
        ('t("a",)', "character 7: found ')', expected a text in quotes"),
        ('t("a" "b")', "character 7: found '\"b\"', expected , or )"),
        ('t("a)', "character 3: found '\"', expected a text of Unicode that ends in the same quote"),
        (r't("a\n")', "with no escapes but"),
        ("fresh", "character 6: found the end, expected ( as in fresh(7d)"),
        ("fresh('a')", "expected a duration like 7d"),
        ("fresh(7)", "character 8: found ')', expected a unit: m, h, d or w"),
        ("fresh(7y)", "in m, h, d or w"),
        ("fresh(-1d)", "expected a duration of 0 to"),
        ("fresh(1e99w)", "expected a duration of 0 to"),
        ("fresh(1000000.001d)", "expected a duration of 0 to 1,000,000 days"),
        ("fresh(7d", "character 9: found the end, expected )"),
        ("~" * 51 + "a", "character 51: found '~', expected at most 50 levels"),
        ("(" * 1000, "character 51: found '(', expected at most 50 levels"),
        (" & ".join(["a"] * 101), "expected at most 100 conditions"),
        ("x" * 2001, "rule of 2001 characters: allowed are 2000"),
        ("t('" + '"' * 1500 + "')", "rule of 3005 characters once spaced: allowed are 2000"),
        ("a\n\u2028&", "character 3: found '\\u2028'"),
    ],
)
def test_malformed_text_is_said_in_one_line(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_bounds_themselves_are_allowed() -> None:
    deep = "~" * 25 + "(" * 25 + "a" + ")" * 25
    assert str(parse(deep)) == "~" * 25 + "a"
    assert len(parse(" | ".join(f"s{i}" for i in range(100))).operands) == 100
    assert parse("x" * 2000) == Named("x" * 2000)
    assert parse("tt('" + '"' * 997 + "')").text == 'tt("' + '\\"' * 997 + '")'  # 2,000 characters once spaced
    assert parse("fresh(1000000d)") == Fresh(10**6 * DAY)
    assert parse("fresh(0m)") == Fresh(0)


def test_the_example_in_a_message_is_a_rule() -> None:
    with pytest.raises(InputError) as error:
        parse("a b")
    example = str(error.value).split("; a rule reads like ")[1]
    assert parse(example) == parse('fresh(7d) & ~seen & category("a") & price < 20')


texts = st.text(st.sampled_from(["a", "b", '"', "'", "\\", " ", "\n", "é"]), max_size=5)
names = st.sampled_from(["seen", "price", "x1", "größe", "freshly"])
conditions = st.one_of(
    st.builds(Has, names, st.lists(texts, min_size=1, max_size=3).map(tuple)),
    st.builds(Compare, names, st.sampled_from(list(OPS)), st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(Fresh, st.integers(0, 10**6 * DAY) | st.integers(0, 10**6)),
    st.builds(Named, names),
)


def rules_of(conditions: st.SearchStrategy[Rule]) -> st.SearchStrategy[Rule]:
    def extend(inner: st.SearchStrategy[Rule]) -> st.SearchStrategy[Rule]:
        parts = st.lists(inner, min_size=2, max_size=4).map(tuple)
        return st.builds(Not, inner) | st.builds(And, parts) | st.builds(Or, parts)

    return st.recursive(conditions, extend, max_leaves=12)


@given(rules_of(conditions))
def test_canonical_text_reads_back(rule: Rule) -> None:
    again = parse(str(rule))
    assert again == rule
    assert hash(again) == hash(rule)
    assert str(again) == str(rule)


@given(st.lists(st.sampled_from([*"ab \n\"'\\~&|()<>=!,.-+e07dwmé²\ud800", "fresh(", "7d)", 't("', '")']), max_size=40))
@settings(max_examples=500)
def test_any_text_is_a_rule_or_an_input_error(pieces: list[str]) -> None:
    try:
        rule = parse("".join(pieces))
    except InputError as error:
        assert "\n" not in str(error)
        assert "rule, character" in str(error)
    else:
        assert parse(str(rule).encode().decode()) == rule


def test_all_of() -> None:
    a, b = parse("a"), parse("b & c")
    assert all_of() is None
    assert all_of(None, a) is a
    assert all_of(a, None, b) == parse("a & b & c")


# --- items ---


AT = 30 * DAY + 12_345  # within a minute
rows = st.fixed_dictionaries(
    {
        "region": st.none() | st.sampled_from("ab"),
        "genres": st.none() | st.lists(st.sampled_from("ab") | st.none(), max_size=3),
        "price": st.none() | st.integers(-1, 2),
        "adult": st.none() | st.booleans(),
        "published_ms": st.none() | st.sampled_from([AT - DAY, AT - 12_345 - MINUTE, AT - HOUR, AT + DAY, -5]),
        "seen": st.booleans(),
        "excluded": st.booleans(),
    }
)
tables = st.lists(rows, min_size=1, max_size=20)
asked = st.one_of(
    st.builds(Has, st.sampled_from(["region", "genres"]), st.lists(st.sampled_from("abz"), min_size=1).map(tuple)),
    st.builds(
        Compare, st.sampled_from(["price", "adult"]), st.sampled_from(list(OPS)), st.sampled_from([-1, 0, 0.5, 1])
    ),
    st.builds(Fresh, st.sampled_from([0, MINUTE, HOUR, DAY, 100 * DAY])),
    st.builds(Named, st.sampled_from(["seen", "excluded"])),
)


def tags_of(table: list[dict]) -> Tags:
    kinds = {"region": pa.string(), "genres": pa.list_(pa.string()), "price": pa.float64(), "adult": pa.bool_()}
    columns = {name: pa.array([row[name] for row in table], kind) for name, kind in kinds.items()}
    published = [-(2**63) if row["published_ms"] is None else row["published_ms"] for row in table]
    return Tags(columns, np.array(published, dtype=np.int64), len(table))


def sets_of(table: list[dict]) -> dict[str, Bits]:
    return {name: Bits.of(np.array([row[name] for row in table])) for name in ("seen", "excluded")}


def holds(rule: Rule, row: dict, at_ms: int) -> bool:
    match rule:
        case Has(name, values):
            own = row[name] if isinstance(row[name], list) else [row[name]]
            return any(value in own for value in values)
        case Compare(name, op, number):
            return row[name] is not None and OPS[op](row[name], number)
        case Fresh(ms):
            return row["published_ms"] is not None and row["published_ms"] >= at_ms // MINUTE * MINUTE - ms
        case Named(name):
            return row[name]
        case Not(part):
            return not holds(part, row, at_ms)
        case And(parts):
            return all(holds(part, row, at_ms) for part in parts)
        case Or(parts):
            return any(holds(part, row, at_ms) for part in parts)
    raise AssertionError(rule)


@given(tables, rules_of(asked), st.lists(st.booleans(), min_size=40, max_size=40))
@settings(deadline=None, max_examples=300)
def test_evaluate_equals_asking_every_item(table: list[dict], rule: Rule, others: list[bool]) -> None:
    tags = tags_of(table)
    found = evaluate(rule, tags, at_ms=AT, sets=sets_of(table))
    assert found.mask().tolist() == [holds(rule, row, AT) for row in table]
    # What was kept from the first time is right for other sets, and for another minute.
    table = [row | {"seen": others[2 * i], "excluded": others[2 * i + 1]} for i, row in enumerate(table)]
    for at_ms in (AT, AT + 5, AT + HOUR, AT):
        found = evaluate(rule, tags, at_ms=at_ms, sets=sets_of(table))
        assert found.mask().tolist() == [holds(rule, row, at_ms) for row in table]


class CountingTags(Tags):
    num_asked = 0

    def has(self, name: str, *values: str) -> Bits:
        self.num_asked += 1
        return super().has(name, *values)

    def since(self, cutoff_ms: int) -> Bits:
        self.num_asked += 1
        return super().since(cutoff_ms)


def test_only_what_the_request_brings_is_combined_again() -> None:
    tags = CountingTags({"t": pa.array(["a", "b", "c"])}, np.array([0, 0, 0]), 3)
    rule = parse('t("a", "b") & ~seen & (mine | t("b") | ~t("c")) & fresh(1d)')
    asked = []
    for second in (60, 61, 119, 120):
        sets = {"seen": Bits.at(np.array([second % 3]), 3), "mine": Bits.empty(3)}
        evaluate(rule, tags, at_ms=second * 1000, sets=sets)
        asked.append(tags.num_asked)
    assert asked == [4, 4, 4, 5]  # in a new minute only `fresh` is asked again


def test_what_is_not_there_is_said() -> None:
    tags = Tags({"t": pa.array(["a"]), "price": pa.array([1.0])}, None, 1)
    for text, says in {
        'colour("x")': r"no tag 'colour'; there are \['price', 't'\]",
        "colour < 3 & seen": "no tag 'colour'",
        "t < 3": r'tag \'t\' holds text; write t\("value"\)',
        'price("x") | seen': "tag 'price' holds numbers; write price < 20",
        "~mine": r"no set 'mine' in the request; there are \['seen'\]",
    }.items():
        with pytest.raises(InputError, match=says):
            evaluate(parse(text), tags, at_ms=0, sets={"seen": Bits.empty(1)})


def test_explain() -> None:
    size = 4600
    category = ["x" if i < 35 else None for i in range(size)]
    published = np.where(np.arange(size) >= size - 120, 10 * DAY, 0)
    tags = Tags({"category": pa.array(category)}, published, size)
    base = ~Bits.at(np.array([0, 1, 2, 3, 4, 50, 51]), size)

    def said(text: str) -> str:
        return explain(parse(text), [(tags, {"seen": Bits.at(np.arange(10), size)}, base)], at_ms=10 * DAY)

    assert said('fresh(7d) & category("x") & ~seen') == (
        'fresh(7d) leaves 120 of 4,593 items, then category("x") leaves 0 (alone 30)'
    )
    assert said('category("x") & ~seen') == (
        'category("x") leaves 30 of 4,593 items, then ~seen leaves 25 (alone 4,588)'
    )
    assert 'then category("y", " ") leaves 0 (alone 0)' in said('category("x") & category("y", "\n") & seen')
    assert said('category("y") | category("z")') == (
        'category("y") | category("z") leaves 0 of 4,593 items; category is one of 1: \'x\''
    )


def test_a_condition_that_no_item_meets_is_answered_with_what_there_is() -> None:
    columns = {
        "price": pa.array([0.5, 3.0, None]),
        "topics": pa.array([["a", "b"], ["b"], None]),
        "empty": pa.array([None, None, None], pa.string()),
        "none": pa.array([None, None, None], pa.float64()),
        "many": pa.array([f"v{i}" for i in range(3)]),
    }
    tags, base = Tags(columns, np.array([0, 5 * DAY, -(2**63)]), 3), Bits.full(3)

    def said(text: str) -> str:
        return explain(parse(text), [(tags, {"seen": Bits.empty(3)}, base)], at_ms=400 * DAY).partition("; ")[2]

    assert said("price > 9") == "price goes from 0.5 to 3"
    assert said('topics("c") | ~(price < 9) & price > 3') == "topics is one of 2: 'b', 'a'; price goes from 0.5 to 3"
    assert said('empty("x")') == "no item has any empty"
    assert said("none < 1") == "no item has any none"
    assert said("fresh(7d)") == "items were published from 1970-01-01 to 1970-01-06, and it is 1971-02-05 00:00 UTC"
    assert said("price < 1 & seen") == ""
    assert said("price < 1 & price > 1") == ""  # each alone has an item
    unknown = Tags({"x": pa.array([f"{i:02}" * 30 for i in range(9)])}, None, 9)
    line = explain(parse('x("?") | fresh(1d)'), [(unknown, {}, Bits.full(9))], at_ms=0)
    assert "no item's time of publication is known" in line
    assert line.count("'0") == 8
    assert "…" in line
    assert "01" * 20 in line
    assert "01" * 21 not in line


def test_explain_counts_over_the_index_and_its_delta() -> None:
    one = Tags({"t": pa.array(["x", "y", "x"])}, None, 3), {"seen": Bits.at(np.array([0]), 3)}, Bits.full(3)
    two = Tags({"t": pa.array(["x", "y"])}, None, 2), {"seen": Bits.empty(2)}, Bits.at(np.array([0]), 2)
    assert explain(parse('t("x") & ~seen'), [one, two], at_ms=0) == (
        't("x") leaves 3 of 4 items, then ~seen leaves 2 (alone 3)'
    )


def test_parts_of_one_group_are_one_entry() -> None:
    group = parse("a & t('x') & p < 1")
    assert isinstance(group, And)
    assert group.settled == parse("t('x') & p < 1")
