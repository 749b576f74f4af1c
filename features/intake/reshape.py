"""Staged rows → rows in the shape that the contracts want: one row an event, an item, a user. Meaning stays as it is.

    unfolded = unfold(rows, options, noun="events", scratch=…)      explode and pivot: other rows, other columns
    shaped   = reshape(unfolded, noun="events", scratch=…)          fields, constants, where, value, keep

Between the two it is settled to which files an option without a noun belongs (features/intake/options.py, settle).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from features.intake.columns import ALIASES
from features.intake.options import SHOWN, Options, contract_names, find_sources
from features.intake.shapes.explode import explode
from features.intake.shapes.keep import keep_one
from features.intake.shapes.pivot import pivot
from features.intake.shapes.sift import Sifted
from features.intake.shapes.spread import spread
from features.intake.staged import Rows
from plumline.errors import InputError


@dataclass(frozen=True)
class Shaped:
    """Rows and the options that are left to do on them (map and types).

    told: what was counted. sifted: the rows, or those that they were made from, with more counts.
    """

    rows: Rows
    options: Options
    told: tuple[str, ...] = ()
    sifted: Sifted | None = None


def unfold(rows: Rows, options: Options, *, noun: str, scratch: Path) -> Shaped:
    """Rows after explode and pivot. Raises InputError for a column that is not there or holds something else."""
    told: list[str] = []
    if options.explode and "+" in options.explode[0] and options.explode[0] not in rows.columns:
        has_item = bool(source_of("item_id", noun, rows.columns, options, required=False))
        columns = options.explode[0].split("+")
        into = scratch / f"{noun}-spread"
        rows = spread(rows, columns, has_item=has_item, noun=noun, into=into, null_words=options.null_words)
        mapping = {**options.map, "action": "action", **({} if has_item else {"item_id": "item_id"})}
        options = options.model_copy(update={"map": mapping})
    elif options.explode:
        exploded = explode(
            rows, options.explode, noun=noun, into=scratch / f"{noun}-explode", null_words=options.null_words
        )
        if exploded.empty:
            told.append(f"{exploded.empty} rows have nothing in {options.explode[0]}")
        options = _after_explode(options, rows, exploded.rows, noun, exploded.scalars)
        rows = exploded.rows
    if options.pivot:
        if noun == "events":
            raise InputError("--pivot is for items and users: an event has one row; say which with items: or users:")
        id_column = source_of(f"{noun[:-1]}_id", noun, rows.columns, options)
        wanted = _wanted(rows, options, noun)
        rows = pivot(rows, options.pivot, id_column=id_column, wanted=wanted, noun=noun, into=scratch / f"{noun}-pivot")
    return Shaped(rows, options, tuple(told))


def reshape(unfolded: Shaped, *, noun: str) -> Shaped:
    """Rows with fields, constants and conditions, one an id where `keep` says so; and the mapping that is left."""
    rows, options = unfolded.rows, unfolded.options
    columns = (*rows.columns, *options.constant)
    action = source_of("action", noun, columns, options, required=False) if options.value else ""
    sifted = Sifted(rows, options, action)
    mapping = dict(options.map)
    for name, spec in options.map.items():
        found = find_sources(spec, sifted.columns)
        mapping[name] = "+".join(found) if found else spec  # which columns there are is told by who reads them
    mapping |= {name: name for name in options.constant if name in mapping}
    if options.value:
        mapping["action"] = "action"
    options = options.model_copy(update={"map": mapping})
    if options.keep is None:
        return replace(unfolded, rows=sifted, options=options, sifted=sifted)
    id_column = source_of(f"{noun[:-1]}_id", noun, sifted.columns, options)
    held = keep_one(sifted, id_column, options.keep, sifted.columns)
    return replace(unfolded, rows=held, options=options, sifted=sifted)


def source_of(name: str, noun: str, columns: tuple[str, ...], options: Options, *, required: bool = True) -> str:
    """The source column of a contract column: as mapped, by its own name, or by a usual one."""
    if name in options.map:
        found = find_sources(options.map[name], columns)
        if len(found) == 1:
            return found[0]
    else:
        for usual in (name, *ALIASES[noun].get(name, ())):
            if usual in columns:
                return usual
    if required:
        raise InputError(
            f"{noun}: no column {options.map.get(name, name)!r}; there are {', '.join(columns)}; "
            f"name it with --map {noun}:{name}=COLUMN"
        )
    return ""


def _after_explode(options: Options, before: Rows, after: Rows, noun: str, scalars: bool) -> Options:
    """`events.aid` is the field `aid` of what was exploded; ids that were shown are items."""
    column = options.explode[0]
    mapping = dict(options.map)
    for name, spec in mapping.items():
        inner = spec.removeprefix(f"{column}.")
        if spec not in after.columns and inner in after.columns:
            mapping[name] = inner
    usual = ("item_id", *ALIASES[noun].get("item_id", ()))
    if noun == "events" and scalars and "item_id" not in mapping and not set(usual) & set(after.columns):
        mapping["item_id"] = column
    return options.model_copy(update={"map": mapping})


def _wanted(rows: Rows, options: Options, noun: str) -> tuple[str, ...]:
    """Properties that are asked for by name."""
    named = [part for spec in options.map.values() for choice in spec.split("|") for part in choice.split("+")]
    asked = [part.split(".")[0] for part in named if part and part not in rows.columns]
    usual = [name for names in ALIASES[noun].items() for name in (names[0], *names[1])] if asked else []
    return tuple(dict.fromkeys([*asked, *usual, *(contract_names(noun) if asked else [])]))


__all__ = ["SHOWN", "Shaped", "reshape", "source_of", "unfold"]
