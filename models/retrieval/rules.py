"""Rules over items as text: what a request allows, as an algebra of tags.

    fresh(7d) & ~seen & (category("a") | category("b")) & region("DE") & price < 20
    allowed = evaluate(parse(text), tags, at_ms=…, sets={"seen": Bits.at(positions, tags.size)})

Not a stage. In the grammar a comparison binds tightest, then `~`, `&`, `|`:

    category("a", "b")      the item has one of these tags; '…' or "…", with \\" \\' \\\\ inside
    price < 20              also <= > >= == !=
    fresh(7d)               published at most that long ago: m, h, d, w (`fresh` is no name of a tag or a set)
    seen                    a set of items that comes with the request

A missing value has no tag and satisfies no comparison, so that `~` of either is true. Rules come from outside: text,
nesting and number of conditions are bounded, and whatever is wrong is an InputError of one line with its place.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache, reduce
from typing import ClassVar, NamedTuple

from models.retrieval.bits import Bits
from models.retrieval.tags import COMPARISONS, Tags
from plumline.errors import InputError

MAX_CHARACTERS, MAX_DEPTH, MAX_CONDITIONS = 2000, 50, 100
_MINUTE_MS = 60_000
_UNITS_MS = {"w": 7 * 1440 * _MINUTE_MS, "d": 1440 * _MINUTE_MS, "h": 60 * _MINUTE_MS, "m": _MINUTE_MS}
_LONGEST_MS = 1_000_000 * _UNITS_MS["d"]  # far below 2**51: above it minutes as a float would not say it exactly
_TOKEN = re.compile(r"""(?xs)
    (?P<space> [ \t\r\n]+)
    | (?P<string> "(?:[^"\\\ud800-\udfff]|\\["'\\])*" | '(?:[^'\\\ud800-\udfff]|\\["'\\])*' )
    | (?P<number> -?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<name> [^\W\d]\w*)
    | (?P<sign> <=|>=|==|!=|[<>&|~(),]) | (?P<unknown> .)""")
_EXAMPLE = 'a rule reads like fresh(7d) & ~seen & category("a") & price < 20'


class Rule:
    """A rule: hashable, never changed. `str` gives the canonical text; `parse` of it gives an equal rule."""

    @property
    def operands(self) -> tuple[Rule, ...]:
        """The rules that this one is made of; none for a condition."""
        return self.parts if isinstance(self, _Group) else (self.part,) if isinstance(self, Not) else ()

    @cached_property
    def needs(self) -> int:
        """What decides it besides the tags: 2 if sets of the request, else 1 if the minute of the request, else 0."""
        own = 2 if isinstance(self, Named) else 1 if isinstance(self, Fresh) else 0
        return max((part.needs for part in self.operands), default=own)

    @cached_property
    def text(self) -> str:
        """`str` of it, kept (of the whole, not of each part: nested parts would keep each other's text again)."""
        return str(self)

    def __str__(self) -> str:
        match self:
            case Has(name, values):
                escaped = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
                return name + "(" + ", ".join(f'"{value}"' for value in escaped) + ")"
            case Compare(name, op, number):
                return f"{name} {op} {repr(float(number)).removesuffix('.0')}"
            case Fresh(ms):
                unit = next((unit for unit in "dhm" if ms % _UNITS_MS[unit] == 0), None)  # weeks are written in days
                return f"fresh({ms // _UNITS_MS[unit]}{unit})" if unit else f"fresh({ms / _MINUTE_MS!r}m)"
            case Not(part):
                return f"~({part})" if isinstance(part, _Group) else f"~{part}"
            case And(parts) | Or(parts):
                return f" {self.sign} ".join(f"({part})" if isinstance(part, Or) else str(part) for part in parts)
        assert isinstance(self, Named)
        return self.name


@dataclass(frozen=True)
class Has(Rule):
    """The item has one of these values of a tag."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Compare(Rule):
    """A number of the item against a given, finite one. op: < <= > >= == or !=."""

    name: str
    op: str
    number: float


@dataclass(frozen=True)
class Fresh(Rule):
    """The item was published at most so many milliseconds before the request."""

    ms: int


@dataclass(frozen=True)
class Named(Rule):
    """The item is in a set that comes with the request."""

    name: str


@dataclass(frozen=True)
class Not(Rule):
    """The part does not hold."""

    part: Rule


@dataclass(frozen=True)
class _Group(Rule):
    """Two or more parts; a part of the same class is replaced by its own parts."""

    parts: tuple[Rule, ...]
    sign: ClassVar[str]

    def __post_init__(self) -> None:
        assert len(self.parts) >= 2
        flat = tuple(inner for part in self.parts for inner in (part.operands if type(part) is type(self) else (part,)))
        object.__setattr__(self, "parts", flat)

    @cached_property
    def settled(self) -> Rule | None:
        """The parts that need less than the whole does, as one rule: what `evaluate` finds in its cache."""
        less = tuple(part for part in self.parts if part.needs < self.needs)
        return type(self)(less) if len(less) > 1 else next(iter(less), None)


class And(_Group):
    """All parts hold."""

    sign = "&"


class Or(_Group):
    """One part holds."""

    sign = "|"


def all_of(*rules: Rule | None) -> Rule | None:
    """The rule that all of those that are not None hold; None if there is none."""
    given = tuple(rule for rule in rules if rule is not None)
    return And(given) if len(given) > 1 else next(iter(given), None)


@lru_cache(maxsize=4096)
def parse(text: str) -> Rule:
    """Read a rule. At most 2,000 characters (also as canonical text), 100 conditions, and 50 levels of `(` and `~`.

    Raises InputError naming the character (counted from 1), what stands there and what was expected.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"rule of {len(text)} characters: allowed are {MAX_CHARACTERS}; shorten it")
    parser = _Parser(text)
    rule = parser.group(Or)
    parser.take("end", "& or | or the end")
    if len(rule.text) > MAX_CHARACTERS:  # so that the canonical text can always be read back
        raise InputError(f"rule of {len(rule.text)} characters once spaced: allowed are {MAX_CHARACTERS}; shorten it")
    return rule


class _Token(NamedTuple):
    kind: str  # string, number, name, unknown, end, or the sign itself
    text: str
    start: int


class _Parser:
    """Recursive descent over the tokens, a method for each level of precedence."""

    def __init__(self, text: str) -> None:
        self._depth = self._num_conditions = 0
        self._tokens = [_Token("end", "", len(text))]
        for match in reversed([*_TOKEN.finditer(text)]):  # the next token is the last of the list
            if match.lastgroup != "space":
                kind = match.group() if match.lastgroup == "sign" else str(match.lastgroup)
                self._tokens.append(_Token(kind, match.group(), match.start()))

    def group(self, kind: type[Or] | type[And]) -> Rule:
        parts = [self.group(And) if kind is Or else self._negation()]
        while self._tokens[-1].kind == kind.sign:
            self._tokens.pop()
            parts.append(self.group(And) if kind is Or else self._negation())
        return kind(tuple(parts)) if len(parts) > 1 else parts[0]

    def _negation(self) -> Rule:
        if self._tokens[-1].kind not in ("~", "("):
            return self._condition()
        token = self._tokens.pop()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(token, f"at most {MAX_DEPTH} levels of ( and ~")
        rule = Not(self._negation()) if token.kind == "~" else self.group(Or)
        if token.kind == "(":
            self.take(")", "& or | or )")
        self._depth -= 1
        return rule

    def _condition(self) -> Rule:
        name = self.take("name", 'a condition like category("a"), price < 20, fresh(7d) or seen, or ~ or (')
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise _error(name, f'at most {MAX_CONDITIONS} conditions; category("a", "b", …) counts as one')
        if name.text == "fresh":
            self.take("(", "( as in fresh(7d)")
            number, unit = self.take("number", "a duration like 7d"), self.take("name", "a unit: m, h, d or w")
            ms = float(number.text) * _UNITS_MS.get(unit.text, math.nan)
            if not 0 <= ms <= _LONGEST_MS:
                raise _error(number, "a duration of 0 to 1,000,000 days in m, h, d or w")
            self.take(")", ")")
            return Fresh(round(ms))
        if self._tokens[-1].kind in COMPARISONS:
            op, number = self._tokens.pop().kind, self.take("number", "a number")
            if not math.isfinite(float(number.text)):
                raise _error(number, "a number below 1.8e308")
            return Compare(name.text, op, float(number.text))
        if self._tokens[-1].kind != "(":
            return Named(name.text)
        values: list[str] = []
        while not values or self._tokens[-1].kind == ",":
            self._tokens.pop()  # the ( or the comma
            values.append(re.sub(r"\\(.)", r"\1", self.take("string", "a text in quotes").text[1:-1]))
        self.take(")", ", or )")
        return Has(name.text, tuple(values))

    def take(self, kind: str, expected: str) -> _Token:
        if self._tokens[-1].kind != kind:
            raise _error(self._tokens[-1], expected)
        return self._tokens.pop()


def _error(token: _Token, expected: str) -> InputError:
    found = "the end" if token.kind == "end" else repr(token.text)
    if token.text in ("'", '"'):  # a whole text has two of them
        expected = r"a text of Unicode that ends in the same quote, with no escapes but \" \' \\"
    return InputError(f"rule, character {token.start + 1}: found {found}, expected {expected}; {_EXAMPLE}")


def evaluate(rule: Rule, tags: Tags, *, at_ms: int, sets: Mapping[str, Bits]) -> Bits:
    """Positions that satisfy the rule.

    at_ms: epoch milliseconds. `fresh` counts from the full minute before, so that requests of one minute share what is
    found; an item published after that is fresh, one of unknown time never. sets: over the same positions as tags. The
    parts of a group that do not depend on the request are found once and kept in tags, as one set.
    Raises InputError for a tag or a set that is not there, or a tag that is asked for in the other's form.
    """
    minute_ms = at_ms // _MINUTE_MS * _MINUTE_MS

    def recall(rule: Rule) -> Bits:
        return tags.remember((rule.text, minute_ms if rule.needs else None), lambda: find(rule))

    def find(rule: Rule) -> Bits:
        match rule:
            case Has(name, values):
                return tags.has(name, *values)
            case Compare(name, op, number):
                return tags.compare(name, op, number)
            case Fresh(ms):
                return tags.since(minute_ms - ms)
            case Named(name) if name in sets:
                return sets[name]
            case Not(part):
                return ~find(part)
            case And(parts) | Or(parts):
                found = [find(part) for part in parts if part.needs == rule.needs]
                found += [recall(rule.settled)] if rule.settled else []
                return reduce(operator.and_ if isinstance(rule, And) else operator.or_, found)
        raise InputError(f"no set {rule.text!r} in the request; there are {sorted(sets)}; a tag is asked with a value")

    return find(rule) if rule.needs == 2 else recall(rule)


def explain(rule: Rule, places: Sequence[tuple[Tags, Mapping[str, Bits], Bits]], *, at_ms: int) -> str:
    """One line for whoever's rule allows too little: what each part of an `&` leaves, until nothing is left.

    places: tags, sets and the items that there are, of each part of an index. Raises InputError as `evaluate` does.
    """
    left, total = [base for _, _, base in places], sum(len(base) for _, _, base in places)
    steps = list[str]()
    for part in rule.parts if isinstance(rule, And) else (rule,):
        allowed = [evaluate(part, tags, at_ms=at_ms, sets=sets) & base for tags, sets, base in places]
        left = [before & now for before, now in zip(left, allowed, strict=True)]
        num_left, num_alone = sum(map(len, left)), sum(map(len, allowed))
        steps.append(f"{part} leaves {num_left:,}" + (f" (alone {num_alone:,})" if steps else f" of {total:,} items"))
        if not num_left:
            break
    line = ", then ".join(steps)
    if not num_alone:
        line = "; ".join([line, *_what_there_is(part, [tags for tags, _, _ in places], at_ms)])
    # A value may hold a line break, or what a terminal obeys.
    return "".join(character if character.isprintable() else " " for character in line)


def _what_there_is(rule: Rule, places: Sequence[Tags], at_ms: int) -> list[str]:
    """What the conditions of a rule could have asked for, each name once; of the base index, whose delta is small."""
    match rule:
        case And(parts) | Or(parts):
            return list(dict.fromkeys(said for part in parts for said in _what_there_is(part, places, at_ms)))
        case Not(part):
            return _what_there_is(part, places, at_ms)
        case Has(name) | Compare(name):
            return [tags.values(name) for tags in places[:1]]
        case Fresh():
            now = datetime.fromtimestamp(at_ms / 1000, UTC)
            return [f"{tags.published()}, and it is {now:%Y-%m-%d %H:%M} UTC" for tags in places[:1]]
    return []
