"""What a person may say about files from outside: which they are, how they are read, what shape and types they have.

    options = parse_options({"events": ["log.csv"], "map": ["item_id=sku"], "where": ["price > 0"]})
    options = override(layout, options)             a named layout, and what was asked beside it
    given   = settle(given, columns, ("map", "where"))   an option without a noun goes where its columns are

A noun is "items", "events" or "users". A value may start with one (`items:`, `events:`, `users:`), then it is for those
files alone. An option that takes one value a noun and is given two is refused: the last one never wins in silence.
"""

import codecs
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from plumline.errors import InputError

NOUNS = ("items", "events", "users")
SHOWN = "impression"
"""Action of an event that shows no interest: the item was seen (features/histories.py, NO)."""
SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
DEFAULT_NULLS = (
    *("", "NULL", "Null", "null", "NaN", "NAN", "nan", "NaT", "None", "NONE", "none"),
    *("N/A", "n/a", "NA", "<NA>", "\\N"),
)
"""Cells that mean "nothing is known", in every column."""


class Options(BaseModel):
    """What was said about the files of one noun, in the order in which it is used."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    files: tuple[str, ...] = ()
    """Paths, globs, folders, or - for standard input; in a layout relative to its folder."""
    format: Literal["csv", "json", "parquet"] | None = None
    """Kind of file; none: by its name, then by what is in it."""
    separator: str | None = None
    """Between the cells of a line, of one character or more; none: guessed and said."""
    encoding: str | None = None
    """Of text files; none: guessed and said."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a file without a header."""
    quote: Literal["none"] | None = None
    """`none` for text files in which quotes are letters like others; else they are read as quotes where they match."""
    heading: str | None = None
    """Column that lines with a colon at their end fill for the lines below (`17:`, then the rows of 17)."""
    explode: tuple[str, ...] = ()
    """A column of lists, each element of which becomes a row; a second one lists those that were clicked; or `a+b+c`,
    columns that are each a kind of event."""
    pivot: tuple[str, ...] = ()
    """Columns that hold the name of a property, its value and, as a third, the time after which the last one wins."""
    constant: Mapping[str, str] = {}
    """Column → what stands in each of its rows."""
    where: tuple[str, ...] = ()
    """Conditions that every row must fulfil (features/intake/shapes/conditions.py)."""
    value: tuple[str, ...] = ()
    """Conditions that an event must fulfil to show interest; the others are impressions."""
    keep: Literal["first", "last"] | None = None
    """Which row stays where an item or a user has several that differ; none: that is refused."""
    map: Mapping[str, str] = {}
    """Contract column → source column: `""` ignores it, `a.b` is a field of `a`, `a+b` both, `a|b` the first that is
    there, `?a+b` the names of those that say yes."""
    time_format: str | None = None
    """How times are written, as strptime knows it; none: looked up in the whole column."""
    time_zone: str = "UTC"
    """Of times that name none."""
    null_words: tuple[str, ...] = DEFAULT_NULLS
    """Cells that mean that nothing is known."""
    extra: bool = False
    """For layouts: these files only tell more of ids that others have. What cannot be read of them is left out."""
    shared: tuple[str, ...] = ()
    """`map NAME`, `where TEXT` …: what was said without a noun and is also said to other files."""


# --- 1. FROM TEXT ---


def parse_options(asked: Mapping[str, Sequence[str]], nouns: Collection[str] = ()) -> dict[str, Options]:
    """What the command line says, by noun. `nouns`: those that a layout brings; those with files come on top.

    asked: name of the option ("items", "events", "users": files; "map", "where", "explode", "pivot", "value",
    "constant", "columns", "separator", "encoding", "quote", "heading", "keep", "time_format", "time_zone", "null",
    "format") → its values as they were typed, in order. Raises InputError in one line.
    """
    given = [noun for noun in NOUNS if noun in nouns or asked.get(noun)]
    fields: dict[str, dict[str, Any]] = {noun: {"files": tuple(asked.get(noun, ()))} for noun in given}
    for name in _PARSERS:
        words = [(text, *_split_noun(name, text)) for text in asked.get(name, ())]
        # what is said of one kind of file is said after what is said of all: it is the exception
        for text, said, value in sorted(words, key=lambda word: name == "map" and word[1] is not None):
            if said is not None and said not in given:
                shown = " ".join(text.split())
                raise InputError(f"{_flag(name)} {shown}: no {said} file was given; there are {', '.join(given)}")
            if "\n" in value and name != "separator":
                raise InputError(f"{_flag(name)} {value!r}: a value is one line")
            _PARSERS[name](fields, name, value, said)
    return {noun: Options(**values) for noun, values in fields.items()}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _split_noun(name: str, text: str) -> tuple[str | None, str]:
    found = re.match(r"(items|events|users):", text)
    if found is None and name == "map":  # as it was written first: events.item_id=sku
        found = re.match(r"(items|events|users)\.(?=[^=]+=)", text)
    return (found[1], text[found.end() :]) if found else (None, text)


_Fields = dict[str, dict[str, Any]]


def _one(fields: _Fields, name: str, value: Any, said: str | None, nouns: Collection[str]) -> None:
    """An option that takes one value a noun."""
    for noun in [said] if said else nouns:
        if name in fields[noun] and fields[noun][name] != value:
            raise InputError(
                f"{_flag(name)}: {fields[noun][name]!r} and {value!r} are given for {noun}, which take one; "
                f"say which files each is for (items:…, events:…, users:…), or leave one away"
            )
        fields[noun][name] = value


def _add(fields: _Fields, name: str, value: Any, said: str | None, nouns: Collection[str]) -> None:
    for noun in [said] if said else nouns:
        fields[noun][name] = (*fields[noun].get(name, ()), value)


def _share(fields: _Fields, entry: str, said: str | None, nouns: Collection[str]) -> None:
    if not said and len(nouns) > 1:
        _add(fields, "shared", entry, None, nouns)


def _parse_word(fields: _Fields, name: str, value: str, said: str | None) -> None:
    allowed = {"format": ("csv", "json", "parquet"), "keep": ("first", "last"), "quote": ("none",)}[name]
    if value not in allowed:
        raise InputError(f"{_flag(name)} {value!r}: give one of {', '.join(allowed)}")
    nouns = [noun for noun in fields if noun != "events" or name != "keep"]
    if name == "keep" and (said == "events" or not nouns):
        raise InputError(f"--keep {value}: every event stays; it is for items and users")
    _one(fields, name, value, said, nouns)


def _parse_separator(fields: _Fields, name: str, value: str, said: str | None) -> None:
    separator = SEPARATORS.get(value.lower(), value.replace("\\t", "\t"))
    if not separator or "\n" in separator or '"' in separator:
        raise InputError(
            f"--separator {value!r}: give what stands between two cells, or one of {', '.join(SEPARATORS)}"
        )
    _one(fields, name, separator, said, fields)


def _parse_encoding(fields: _Fields, name: str, value: str, said: str | None) -> None:
    try:
        is_text = isinstance(codecs.getincrementaldecoder(value)("replace").decode(b"a\n", True), str)
    except (LookupError, ValueError, AssertionError, TypeError):  # idna and base64 are encodings too
        is_text = False
    if not is_text:
        raise InputError(f"--encoding {value!r} is not known; try utf-8, latin-1, cp1252, utf-16 or gb18030")
    _one(fields, name, value, said, fields)


def _parse_zone(fields: _Fields, name: str, value: str, said: str | None) -> None:
    try:
        ZoneInfo(value)
    except (LookupError, ValueError, OSError):
        raise InputError(f"--time-zone {value!r} is not known; give one like UTC, Europe/Berlin or Etc/GMT-8") from None
    _one(fields, name, value, said, fields)


def _parse_format(fields: _Fields, name: str, value: str, said: str | None) -> None:
    if not value.strip():
        raise InputError("--time-format is empty; give one like '%d/%m/%Y %H:%M'")
    _one(fields, name, value, said, fields)


def _parse_null(fields: _Fields, name: str, value: str, said: str | None) -> None:
    for noun in [said] if said else fields:
        words = fields[noun].get("null_words", DEFAULT_NULLS)
        fields[noun]["null_words"] = ("",) if not value else (*words, value)  # an empty one drops the usual words


def _parse_columns(fields: _Fields, name: str, value: str, said: str | None) -> None:
    names = [part.strip() for part in value.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--columns {value}: give every column a name of its own, as in user_id,item_id,timestamp")
    _for_one(fields, name, value, said)
    _one(fields, name, tuple(names), said, fields)


def _parse_heading(fields: _Fields, name: str, value: str, said: str | None) -> None:
    if not value:
        raise InputError("--heading is empty; give the column that lines like 17: fill, as in item_id")
    _for_one(fields, name, value, said)
    _one(fields, name, value, said, fields)


def _for_one(fields: _Fields, name: str, value: str, said: str | None) -> None:
    """Whose files have no header can be guessed where there is one noun only."""
    if not said and len(fields) > 1:
        nouns = " or ".join(f"{_flag(name)} {noun}:{value}" for noun in fields)
        raise InputError(f"{_flag(name)} {value}: say which files it is for: {nouns}")


def _parse_where(fields: _Fields, name: str, value: str, said: str | None) -> None:
    from features.intake.shapes.conditions import parse_condition

    parse_condition(value, f"--{name}")
    if name == "value":
        if said not in (None, "events") or "events" not in fields:
            raise InputError(f"--value {value}: it says which events show interest; give it beside --events")
        _add(fields, name, value, "events", fields)
        return
    _add(fields, name, value, said, fields)
    _share(fields, f"where {value}", said, fields)


def _parse_list(fields: _Fields, name: str, value: str, said: str | None) -> None:
    names = tuple(part.strip() for part in value.split(","))
    least, most = {"explode": (1, 2), "pivot": (2, 3)}[name]
    if not all(names) or not least <= len(names) <= most:
        forms = {"explode": "COLUMN, or SHOWN,CLICKED", "pivot": "PROPERTY,VALUE or PROPERTY,VALUE,TIME"}
        raise InputError(f"{_flag(name)} {value}: give {forms[name]}")
    _one(fields, name, names, said, fields)
    _share(fields, f"{name} {','.join(names)}", said, fields)


def _parse_constant(fields: _Fields, name: str, value: str, said: str | None) -> None:
    column, equals, text = value.partition("=")
    if not column or not equals:
        raise InputError(f"--constant {value}: not of the form name=value, as in surface=home")
    nouns = [said] if said else _knowing(column, list(fields), f"--constant {value}")
    if len(nouns) > 1:
        raise InputError(f"--constant {value}: {' and '.join(nouns)} have {column}; write {nouns[-1]}:{value}")
    _put(fields, name, column, text, nouns)


def _parse_map(fields: _Fields, name: str, value: str, said: str | None) -> None:
    column, equals, source = value.partition("=")
    if not column or not equals:
        raise InputError(f"--map {value}: not of the form name=column (name= ignores one, topics=a+b joins two)")
    nouns = [said] if said else _knowing(column, list(fields), f"--map {value}")
    if said and not knows(said, column):
        raise InputError(f"--map {value}: {said} have no {column!r}; there are {', '.join(contract_names(said))}")
    shared = f"map {column}"
    if said and shared in fields[said].get("shared", ()):
        fields[said]["shared"] = tuple(entry for entry in fields[said]["shared"] if entry != shared)
        del fields[said][name][column]
    _put(fields, name, column, source, nouns)
    _share({noun: fields[noun] for noun in nouns}, shared, said, nouns)


def _put(fields: _Fields, name: str, column: str, value: str, nouns: Sequence[str]) -> None:
    for noun in nouns:
        there = fields[noun].get(name, {})
        if there.get(column, value) != value:
            raise InputError(
                f"--{name} {column}={value}: {noun} have {column}={there[column]} already; give one of the two"
            )
        fields[noun][name] = {**there, column: value}


def _knowing(column: str, nouns: Sequence[str], said: str) -> list[str]:
    knowing = [noun for noun in nouns if knows(noun, column) and (noun != "users" or column == "user_id")]
    if not knowing:
        known = "; ".join(f"{noun}: {', '.join(contract_names(noun))}" for noun in nouns)
        raise InputError(f"{said}: no contract has {column!r}; there are {known} (users:NAME takes any name)")
    return knowing


def knows(noun: str, column: str) -> bool:
    """Whether a noun may have a column of that name (users may have any)."""
    return (
        column in contract_names(noun) or (noun == "items" and column.startswith(("emb_", "tag_"))) or noun == "users"
    )


def contract_names(noun: str) -> list[str]:
    """Columns of a noun's contract."""
    from plumline.schema import EVENTS, ITEMS, USERS

    return list({"items": ITEMS, "events": EVENTS, "users": USERS}[noun].schema.names)


_PARSERS: dict[str, Callable[[_Fields, str, str, str | None], None]] = {
    "format": _parse_word,
    "separator": _parse_separator,
    "encoding": _parse_encoding,
    "columns": _parse_columns,
    "quote": _parse_word,
    "heading": _parse_heading,
    "explode": _parse_list,
    "pivot": _parse_list,
    "constant": _parse_constant,
    "where": _parse_where,
    "value": _parse_where,
    "keep": _parse_word,
    "map": _parse_map,
    "time_format": _parse_format,
    "time_zone": _parse_zone,
    "null": _parse_null,
}
FLAGS = tuple(_PARSERS)
"""Names of the options, without those of the files."""


# --- 2. A LAYOUT, AND WHAT WAS ASKED BESIDE IT ---


def override(layout: Options, asked: Options) -> Options:
    """A layout's options with what was asked beside it: one value wins over the layout's, conditions come on top."""
    fields: dict[str, Any] = {name: getattr(asked, name) for name in asked.model_fields_set if getattr(asked, name)}
    for name in ("map", "constant"):
        fields[name] = {**getattr(layout, name), **getattr(asked, name)}
    for name in ("where", "value", "shared"):
        fields[name] = (*getattr(layout, name), *getattr(asked, name))
    return layout.model_copy(update=fields)


# --- 3. WHERE AN OPTION WITHOUT A NOUN GOES ---


def settle(
    given: Mapping[str, Sequence[Options]], columns: Mapping[str, Sequence[Collection[str]]], kinds: Collection[str]
) -> dict[str, tuple[Options, ...]]:
    """Leave options of some kinds ("map", "where", "explode", "pivot") that name no noun to the files that have them.

    given: the sources of each noun; columns: what each source has. A mapping goes to every source that has its column,
    the others must go to one noun. Raises InputError where no file, or more than one noun, has the columns.
    """
    places = [(noun, i) for noun, sources in given.items() for i in range(len(sources))]
    left = {place: given[place[0]][place[1]] for place in places}
    entries = {entry: None for options in left.values() for entry in options.shared if entry.split(" ")[0] in kinds}
    for entry in entries:
        kind, _, text = entry.partition(" ")
        asked = [place for place in places if entry in left[place].shared]
        having = [p for p in asked if _has(kind, text, left[p], columns[p[0]][p[1]])]
        nouns = list(dict.fromkeys(noun for noun, _ in having))
        if not nouns:
            there = "; ".join(f"{noun}: {', '.join(columns[noun][i])}" for noun, i in asked)
            said = f"{text}={left[asked[0]].map[text]}" if kind == "map" else text
            raise InputError(f"--{kind} {said}: no file has all of its columns; there are {there}")
        if len(nouns) > 1 and kind != "map":
            raise InputError(
                f"--{kind} {text}: {' and '.join(nouns)} both have these columns; write --{kind} {nouns[-1]}:… for one"
            )
        for place in asked:
            left[place] = _without(left[place], kind, text, entry, drop=place not in having)
    return {noun: tuple(left[noun, i] for i in range(len(sources))) for noun, sources in given.items()}


def _has(kind: str, text: str, options: Options, columns: Collection[str]) -> bool:
    if kind == "map":
        return not options.map[text] or bool(find_sources(options.map[text], columns))
    if kind in ("explode", "pivot"):
        names: Sequence[str] = text.split(",")
        names = names if kind == "pivot" or names[0] in columns else [*names[0].split("+"), *names[1:]]
        return set(names) <= set(columns)
    from features.intake.shapes.conditions import parse_condition

    names = parse_condition(text, "--where").names
    return all(find_column(name, columns, options.map) for name in names)


def _without(options: Options, kind: str, text: str, entry: str, *, drop: bool) -> Options:
    update: dict[str, Any] = {"shared": tuple(e for e in options.shared if e != entry)}
    if drop and kind == "map":
        update["map"] = {name: source for name, source in options.map.items() if name != text}
    elif drop and kind == "where":
        update["where"] = tuple(condition for condition in options.where if condition != text)
    elif drop:
        update[kind] = ()
    return options.model_copy(update=update)


def find_sources(spec: str, columns: Collection[str]) -> tuple[str, ...]:
    """The source columns of a mapping: those of `a+b`, of `a|b` the first that is there; a.b stands for a field of a.

    `?a+b`, the names of those columns that say yes, stands for a column that is made. Empty where one is missing.
    """
    if spec.startswith("?") and spec not in columns:
        return (spec,) if set(flags_of(spec)) <= set(columns) else ()
    for choice in [spec, *spec.split("|")] if "|" in spec else [spec]:
        parts = (choice,) if choice in columns else tuple(choice.split("+"))
        if all(part in columns or part.split(".")[0] in columns for part in parts):
            return parts
    return ()


def flags_of(spec: str) -> tuple[str, ...]:
    """The columns of `?Action+Comedy`."""
    return tuple(spec[1:].split("+"))


def find_column(name: str, columns: Collection[str], mapping: Mapping[str, str]) -> str | None:
    """The source column that a condition means: by its own name, or by the contract's where it is mapped."""
    if name in columns:
        return name
    sources = find_sources(mapping.get(name, ""), columns)
    return sources[0] if len(sources) == 1 else None
