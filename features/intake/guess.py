"""What files most likely are: by the names of their columns, and by the layouts that we know.

    guess_noun(("sku", "name", "price"))              "items"
    guess_mapping("items", ("sku", "name", "price"))  {"item_id": "sku", "title": "name", "price": "price"}
    guess_layouts(home, Path("ml-1m"))                the layouts that fit a folder, the best first

Nothing here decides anything: `plumline inspect` and `plumline init --guess` show it, and a person says it with --map.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.intake.columns import ALIASES
from features.intake.layouts import Layout, list_files, list_layouts, match_files, read_layout
from features.intake.options import Options, contract_names, find_sources
from features.intake.shapes.lines import has_odd_lines, one_cell
from features.intake.staging.peek import Peek, peek
from plumline.errors import InputError

_USUAL = {
    "user_id": "userid user uid visitorid visitor customerid customer memberid reviewerid reviewer accountid clientid"
    " profileid sessionid session cookieid username",
    "item_id": "itemid item productid product sku asin parentasin videoid movieid filmid film bookid isbn articleid"
    " newsid trackid songid artistid gameid appid businessid adid aid contentid stockcode recipeid courseid postid",
    "timestamp": "timestamp time ts datetime date createdat created eventtime unixreviewtime reviewtime timems ratedat"
    " invoicedate tdat playedat dateadded unixtimestamp eventtimestamp at",
    "action": "action event eventtype type behavior behaviour activity",
    "rating": "rating ratings stars overall score bookrating",
    "watch_ratio": "watchratio completion",
    "quantity": "quantity qty amountofitems",
    "surface": "surface page channelid placement device",
    "title": "title name productname prodname itemname movietitle appname booktitle headline description",
    "description": "description detaildesc abstract text summary overview plot",
    "channel": "channel brand author store publisher artist artistname department seller",
    "topics": "topics genres genre categories category tags tag categorycode",
    "language": "language lang languagecode",
    "price": "price unitprice cost",
    "duration_s": "durations duration",
    "published_at": "publishedat releasedate published uploaddt datepublished daterelease",
}
"""Contract column → names, without anything but letters and digits, that people give it."""
_GUESSED = {
    "items": ("item_id", "title", "description", "channel", "topics", "language", "price", "published_at"),
    "events": ("user_id", "item_id", "timestamp", "action", "rating", "watch_ratio", "price", "quantity", "session_id"),
    "users": ("user_id",),
}
_REQUIRED = {"items": ("item_id",), "events": ("user_id", "item_id", "timestamp"), "users": ("user_id",)}
_DESCRIBING = ("title", "description", "channel", "topics")
_MOST_FILES = 40  # of a folder that are looked into


@dataclass(frozen=True)
class Fit:
    """A layout that fits a folder.

    files: noun → names, relative to it. kinds: noun → options of the kinds of files that are there. found: how many
    columns are where it says.
    """

    layout: Layout
    files: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, tuple[Options, ...]]
    found: int


@dataclass(frozen=True)
class Role:
    """A file of a folder that no layout knows. noun: what it most likely is; mapping: contract column → its column."""

    name: str
    noun: str | None
    mapping: Mapping[str, str]
    columns: tuple[str, ...]


# --- 1. COLUMNS ---


def guess_mapping(noun: str, columns: Sequence[str]) -> dict[str, str]:
    """Contract column → the column that most likely is it, each column once; only what is likely is there."""
    bare = {column: re.sub(r"[^a-z0-9]", "", column.lower()) for column in columns}
    mapping: dict[str, str] = {}
    taken: set[str] = set()
    names = [name for name in contract_names(noun) if name in columns]
    for name in (*names, *(name for name in _GUESSED[noun] if name not in names)):
        usual = (*ALIASES[noun].get(name, ()), *_USUAL.get(name, "").split())
        candidates = [name] if name in columns else [c for word in usual for c in columns if word in (c, bare[c])]
        column = next((one for one in candidates if one not in taken), None)
        if column is None and name in ("item_id", "user_id") and noun in ("items", "users"):
            column = next((one for one in columns if bare[one] == "id"), None)
        if column is not None:
            mapping[name] = column
            taken.add(column)
    return mapping


def guess_noun(columns: Sequence[str]) -> str | None:
    """Whether a file is most likely events, items or users."""
    events, items, users = (guess_mapping(noun, columns) for noun in ("events", "items", "users"))
    if "user_id" in events and ("item_id" in events or "timestamp" in events):
        return "events"
    if "item_id" in items and any(name in items for name in _DESCRIBING):
        return "items"
    if "item_id" in events and "timestamp" in events:
        return "events"
    if "user_id" in users:
        return "users"
    return "items" if "item_id" in items else None


def missing(noun: str, mapping: Mapping[str, str]) -> list[str]:
    """Contract columns that are wanted and not there."""
    wanted = [name for name in _REQUIRED[noun] if name not in mapping]
    if noun == "items" and not any(name in mapping for name in _DESCRIBING):
        wanted.append(f"one of {', '.join(_DESCRIBING)}")
    return wanted


# --- 2. LAYOUTS ---


def guess_layouts(home: Path, folder: Path) -> list[Fit]:
    """The layouts that fit a folder by the names of its files and of their columns, the best first.

    Raises InputError if it is no folder.
    """
    names = list_files(folder)
    seen: dict[tuple[str, str], Peek | None] = {}
    fits = []
    for path in list_layouts(home).values():
        layout = read_layout(path)
        given = match_files(layout, folder, names)
        wanted = [noun for noun in ("items", "events") if layout.sources(noun)]
        counts = {
            noun: [_found(one, () if layout.cannot else _REQUIRED[noun], noun, seen) for one in sources]
            for noun, sources in given.items()
        }
        if wanted and all(any(count is not None for count in counts.get(noun, [])) for noun in wanted):
            files = {
                noun: tuple(Path(file).relative_to(folder).as_posix() for source in sources for file in source.files)
                for noun, sources in given.items()
            }
            fits.append(Fit(layout, files, given, sum(count or 0 for found in counts.values() for count in found)))
    return sorted(fits, key=lambda fit: -fit.found)


def _found(source: Options, required: Sequence[str], noun: str, seen: dict[tuple[str, str], Peek | None]) -> int | None:
    """How many columns of a kind of files are where its options say; None where one that is wanted is not."""
    reading = one_cell(source) if has_odd_lines(source) else source
    about = reading.model_dump_json(include={"format", "separator", "encoding", "columns", "quote", "explode"})
    key = (source.files[0], about)
    if key not in seen:
        try:
            seen[key] = peek(source.files[0], reading)
        except InputError:
            seen[key] = None
    first = seen[key]
    if first is None:
        return None
    if has_odd_lines(source):
        return len(source.columns)
    columns = first.columns
    lists = [name for one in (*source.explode, *source.pivot) for name in one.split("+")]
    if not set(lists) <= set(columns):
        return None
    there = (*columns, *source.constant)
    wanted = dict.fromkeys((*required, *(() if required else source.map))) if not lists else {}
    if any(not _is_there(name, noun, source, there) for name in wanted):
        return None
    mapped = [spec for spec in source.map.values() if spec and find_sources(spec, there)]
    return len(mapped) + len(lists) + len(source.columns) + 1


def _is_there(name: str, noun: str, source: Options, columns: Collection[str]) -> bool:
    if source.map.get(name):
        return bool(find_sources(source.map[name], columns))
    return any(usual in columns for usual in (name, *ALIASES[noun].get(name, ())))


def guess_roles(folder: Path) -> list[Role]:
    """What the files of a folder most likely are, where no layout fits; those that cannot be read are left out."""
    roles = []
    for name in list_files(folder)[:_MOST_FILES]:
        try:
            columns = peek((folder / name).as_posix(), Options()).columns
        except InputError:
            continue
        noun = guess_noun(columns)
        roles.append(Role(name, noun, guess_mapping(noun, columns) if noun else {}, columns))
    return roles
