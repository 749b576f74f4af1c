"""Files and options → what may land: tables of items and users, blocks of events, and what was noticed on the way.

    delivery = read_delivery(given, facts=gather_facts(landing), scratch=…, now=…, tell=print)
    delivery.items, delivery.users      tables of the contracts, or None
    delivery.events()                   blocks of EVENTS, read anew at each call; None where no events were given
    delivery.findings                   guesses, what was left out, lost or nulled; complete after the events were read

given: options by noun (features/intake/options.py), one entry a kind of file. Files are staged (staging/), unfolded and
reshaped (reshape.py), typed (typed.py). Of several kinds of files of one noun, events are added up; items and users of
one id are one row, and what the first kind does not know of it the next one says. Files that only tell more (`extra`, a
layout's word) never block the others. Nothing is landed here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from features.intake.facts import Facts
from features.intake.findings import Finding, Places, order, refuse
from features.intake.options import NOUNS, Options, settle
from features.intake.reshape import Shaped, reshape, unfold
from features.intake.shapes.lines import CutLines, has_odd_lines, one_cell
from features.intake.shapes.sift import Sifted
from features.intake.staged import FILE, LINE, Rows
from features.intake.staging.stage import stage
from features.intake.typed import Reading, look
from plumline.errors import InputError
from plumline.schema import EVENTS, ITEMS, USERS, Contract

CONTRACTS: dict[str, Contract] = {"items": ITEMS, "events": EVENTS, "users": USERS}
_NAMED = 6  # files that `sources` names


@dataclass(frozen=True)
class Delivery:
    """What may land. items, users: tables of their contracts. events: blocks of EVENTS.

    options: what was asked, as JSON; by noun a list, one entry a kind of file. sources: the files, for people.
    facts: what these files say about how things are written, added to what the home knew.
    """

    items: pa.Table | None
    users: pa.Table | None
    events: Callable[[], Iterator[pa.Table]] | None
    options: dict[str, Any]
    sources: str
    facts: Facts
    _kinds: "tuple[_Kind, ...]" = field(repr=False, default=())
    _dropped: tuple[Finding, ...] = field(repr=False, default=())

    def placed_events(self) -> Iterator[tuple[pa.Table, Callable[[int], str]]]:
        """Blocks as `events()` has them, each with what says of a row (from 0) where it comes from: FILE: line N."""
        for kind in self._kinds:
            if kind.noun == "events" and kind.reading is not None and kind.shaped is not None:
                for block in kind.reading.blocks():
                    yield block.select(EVENTS.schema.names), Places(kind.shaped.rows, block).at

    @property
    def seen(self) -> Facts:
        """What these files alone say about how things are written: for the manifest of their batch."""
        return sum((kind.reading.seen for kind in self._kinds if kind.reading is not None), Facts())

    @property
    def findings(self) -> list[Finding]:
        """What was noticed so far, problems and losses first; complete after `events()` was read to its end."""
        return _findings(self._kinds, self._dropped)


@dataclass
class _Kind:
    """One kind of file of a noun on its way. asked: the options as they were settled; options: what is left to do."""

    noun: str
    options: Options
    rows: Rows
    asked: Options
    shaped: Shaped | None = None
    reading: Reading | None = None
    problems: tuple[Finding, ...] = ()


def read_delivery(
    given: Mapping[str, Sequence[Options]],
    *,
    facts: Facts,
    scratch: Path,
    now: datetime,
    stdin: BinaryIO | None = None,
    tell: Callable[[Finding], None] | None = None,
) -> Delivery:
    """Read files as far as landing needs.

    given: noun → options, one entry a kind of file. facts: what the home decided before. scratch: an empty folder that
    outlives `events()`. stdin: what the path `-` reads. tell: is told every finding before a problem is raised.
    Raises InputError in one line; nothing but the scratch folder is written.
    """
    dropped: list[Finding] = []
    staged: dict[tuple[Any, ...], Rows] = {}
    kinds: list[_Kind] = []
    for noun in (noun for noun in NOUNS if noun in given):
        is_alone = all(options.extra for options in given[noun])
        for asked in given[noun]:
            options = asked.model_copy(update={"extra": asked.extra and not is_alone})
            with _unless_extra(noun, options, dropped):
                rows = _stage(options, noun, staged, scratch, stdin)
                kinds.append(_Kind(noun, options, rows, options))
    _settle(kinds, ("explode", "pivot"))
    for number, kind in enumerate(kinds):
        with _unless_extra(kind.noun, kind.options, dropped):
            kind.shaped = unfold(kind.rows, kind.options, noun=kind.noun, scratch=scratch / f"shape-{number}")
            kind.rows, kind.options = kind.shaped.rows, kind.shaped.options
    kinds = [kind for kind in kinds if kind.shaped is not None]
    _settle(kinds, ("map", "where"))
    for kind in kinds:
        with _unless_extra(kind.noun, kind.options, dropped):
            assert kind.shaped is not None
            kind.asked = kind.options
            kind.shaped = reshape(Shaped(kind.rows, kind.options, kind.shaped.told), noun=kind.noun)
            reading = look(kind.shaped.rows, CONTRACTS[kind.noun], kind.shaped.options, facts, now=now)
            _check_rows(kind, reading)
            kind.reading, facts = reading, reading.facts
    kinds = [kind for kind in kinds if kind.reading is not None]
    _refuse(kinds, dropped, tell)
    tables = {noun: _table([kind for kind in kinds if kind.noun == noun], dropped) for noun in ("items", "users")}
    _refuse(kinds, dropped, tell)
    events = [kind.reading for kind in kinds if kind.noun == "events" and kind.reading is not None]
    return Delivery(
        items=tables["items"],
        users=tables["users"],
        events=(lambda: _events(events)) if events else None,
        options={noun: [_asked(kind.asked) for kind in kinds if kind.noun == noun] for noun in given},
        sources=_sources(kinds),
        facts=facts,
        _kinds=tuple(kinds),
        _dropped=tuple(dropped),
    )


# --- steps ---


@contextmanager
def _unless_extra(noun: str, options: Options, dropped: list[Finding]) -> Iterator[None]:
    """What cannot be read of files that only tell more is left out, and said."""
    try:
        yield
    except InputError as error:
        if not options.extra:
            raise
        dropped.append(
            Finding(noun, "", f"{options.files[0]} only tells more and is left out: {error}", kind="counted")
        )


def _stage(
    options: Options, noun: str, staged: dict[tuple[Any, ...], Rows], scratch: Path, stdin: BinaryIO | None
) -> Rows:
    """Rows of files; those of which two nouns are read are staged once."""
    if not options.files:
        raise InputError(f"--{noun}: no file was given; give one, or - for standard input")
    reading = one_cell(options) if has_odd_lines(options) else options
    about = reading.model_dump(include={"files", "format", "separator", "encoding", "columns", "quote"})
    key = (*about.values(), bool(options.explode))
    if key not in staged:
        into = scratch / f"stage-{len(staged)}"
        staged[key] = stage(reading.files, reading, noun=noun, into=into, stdin=stdin)
    return CutLines(staged[key], options) if has_odd_lines(options) else staged[key]


def _settle(kinds: list[_Kind], names: Sequence[str]) -> None:
    """Leave options without a noun to the files that have their columns."""
    by_noun = {noun: [kind for kind in kinds if kind.noun == noun] for noun in NOUNS}
    by_noun = {noun: found for noun, found in by_noun.items() if found}
    given = {noun: [kind.options for kind in found] for noun, found in by_noun.items()}
    columns = {noun: [kind.rows.columns for kind in found] for noun, found in by_noun.items()}
    for noun, settled in settle(given, columns, names).items():
        for kind, options in zip(by_noun[noun], settled, strict=True):
            kind.options = options


def _check_rows(kind: _Kind, reading: Reading) -> None:
    """Where conditions leave no row, they are the reason. Files that only tell more have no problems."""
    if kind.options.extra:
        refuse(reading.findings)
    sifted = _sifted(kind)
    if sifted is not None and not sifted.num_rows and any(sifted.left_out.values()):
        text, count = max(sifted.left_out.items(), key=lambda pair: pair[1])
        raise InputError(
            f"{kind.noun}: --where {text} leaves no row ({count:,} do not fulfil it); see plumline inspect FILE"
        )


def _sifted(kind: _Kind) -> Sifted | None:
    return kind.shaped.sifted if kind.shaped is not None else None


def _table(kinds: Sequence[_Kind], dropped: list[Finding]) -> pa.Table | None:
    """Items or users of all kinds of files: one row an id, where no two rows of one kind tell it differently."""
    merged: pa.Table | None = None
    for kind in sorted(kinds, key=lambda kind: kind.options.extra):
        assert kind.reading is not None
        name = f"{kind.noun[:-1]}_id"
        blocks = kind.reading.blocks()
        if kind.options.extra and merged is not None:
            known = merged.column(name).combine_chunks()
            blocks = (block.filter(pc.is_in(block.column(name), value_set=known)) for block in blocks)
        with _unless_extra(kind.noun, kind.options, dropped):
            table = pa.concat_tables(list(blocks), promote_options="permissive")
            if kind.options.extra:  # of what tells more, the first word counts
                table = table.filter(pa.array(~table.column(name).to_pandas().duplicated().to_numpy()))
            kind.problems = _doubled(kind, table)
            table = table.drop_columns([FILE, LINE])
            merged = table if merged is None else _merged(merged, table, name)
    return merged


def _doubled(kind: _Kind, table: pa.Table) -> tuple[Finding, ...]:
    """A problem where rows of one id differ; equal ones are folded when they land."""
    import pandas as pd

    name = f"{kind.noun[:-1]}_id"
    twice = pd.Series(table.column(name).to_pandas()).duplicated(keep=False).to_numpy()
    first: dict[str, tuple[dict[str, Any], str]] = {}
    differing: list[tuple[str, str, str]] = []
    for row in table.filter(pa.array(twice)).to_pylist():
        place = kind.rows.place(row.pop(FILE), row.pop(LINE))
        known, where = first.setdefault(row[name], (row, place))
        if known != row:
            differing.append((row[name], place, where))
    if not differing:
        return ()
    value, place, where = differing[0]
    what = f"is there twice, and the rows differ (the first is {where})"
    advice = f"keep one row an id, or take one with --keep {kind.noun}:last"
    return (Finding(kind.noun, name, what, len(differing), value, place, "problem", advice),)


def _merged(first: pa.Table, second: pa.Table, name: str) -> pa.Table:
    """Rows of both, one an id; what the first has not the second says."""
    mine = first.column(name).combine_chunks()
    places = pc.index_in(mine, value_set=second.column(name).combine_chunks())
    beside = second.take(places)
    columns: dict[str, Any] = {}
    for field_ in pa.unify_schemas([first.schema, second.schema], promote_options="permissive"):
        has_first, has_second = field_.name in first.column_names, field_.name in second.column_names
        if has_first and has_second:
            known = first.column(field_.name)
            columns[field_.name] = pc.if_else(pc.is_valid(known), known, beside.column(field_.name))
        else:
            columns[field_.name] = (first if has_first else beside).column(field_.name)
    new = second.filter(pc.invert(pc.is_in(second.column(name), value_set=mine)))
    return pa.concat_tables([pa.table(columns), new], promote_options="permissive")


def _events(readings: Sequence[Reading]) -> Iterator[pa.Table]:
    for reading in readings:
        for block in reading.blocks():
            yield block.select(EVENTS.schema.names)


# --- what is told ---


def _refuse(kinds: Sequence[_Kind], dropped: Sequence[Finding], tell: Callable[[Finding], None] | None) -> None:
    findings = _findings(kinds, dropped)
    if any(finding.fatal for finding in findings):
        for finding in findings if tell else ():
            assert tell is not None
            tell(finding)
        refuse(findings)


def _findings(kinds: Sequence[_Kind], dropped: Sequence[Finding]) -> list[Finding]:
    found: dict[Finding, None] = dict.fromkeys(dropped)
    notes: dict[str, None] = {}
    for kind in kinds:
        rows = kind.shaped.rows if kind.shaped else kind.rows
        for note in rows.notes:
            if note not in notes:  # files that two nouns are read from have one note
                notes[note] = None
                found[Finding(kind.noun, "", note)] = None
        for told in kind.shaped.told if kind.shaped else ():
            found[Finding(kind.noun, "", told, kind="counted")] = None
        found |= dict.fromkeys(_sifted_findings(kind))
        found |= dict.fromkeys((*(kind.reading.findings if kind.reading else ()), *kind.problems))
    return list(order(found))


def _sifted_findings(kind: _Kind) -> Iterator[Finding]:
    sifted = _sifted(kind)
    if sifted is None:
        return
    words = (
        (sifted.left_out, "left out by --where {}"),
        (sifted.without, "show no interest by --value {} and become impressions"),
        (sifted.broken, "no list or object where the field {} is read; left empty"),
    )
    for counts, what in words:
        for text, count in counts.items():
            if count:
                yield Finding(kind.noun, "", what.format(text), count, None, sifted.first.get(text), "counted")


def _asked(options: Options) -> dict[str, Any]:
    return options.model_dump(mode="json", exclude_defaults=True, exclude={"shared"})


def _sources(kinds: Sequence[_Kind]) -> str:
    names = list(dict.fromkeys(PurePath(file).name for kind in kinds for file in kind.rows.files))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
