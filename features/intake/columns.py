"""Which column of a file is which column of the contract.

    chosen = choose_columns(rows.columns, EVENTS, {"item_id": "sku", "price": ""})
    chosen.sources      {"item_id": ("sku",), "user_id": ("user_id",), …}     topics may have several
    chosen.findings     what stands in for what, what is left out

A mapping comes first, then a column of the contract's own name, then one of ALIASES. Further columns of items and
events are left out (ids and ranks of other systems must never reach the model), those of users are kept as text.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from features.intake.findings import Finding
from plumline.errors import InputError
from plumline.schema import ITEMS, USERS, Contract

ALIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "items": {
        "item_id": ("video_id", "product_id"),
        "channel": ("brand_or_channel", "brand", "author"),
        "topics": ("categories", "category", "genres", "tags"),
        "published_at": ("first_seen_at",),
        "duration_s": ("duration_ms",),
    },
    "events": {
        "item_id": ("video_id", "product_id"),
        "timestamp": ("time", "ts", "event_time"),
        "action": ("event_type",),
        "watch_time_s": ("watch_time_ms",),
    },
    "users": {},
}
"""Contract column → columns that stand in for it where it is absent and no --map names it."""

_HINTS = {
    "item_id": "item itemid movieid artistid trackid songid productid sku asin parentasin isbn bookid gameid appid"
    " businessid stockcode articleid newsid videoid adid contentid track song",
    "user_id": "user userid uid visitorid customerid memberid reviewerid accountid clientid sessionid session",
    "timestamp": "timestamp datetime date createdat created eventtime unixreviewtime reviewtime timems ratedat"
    " invoicedate tdat playedat dateadded unixtimestamp eventtimestamp",
}
"""What else people call a required column: named in the message, never taken by itself."""


@dataclass(frozen=True)
class Chosen:
    """sources: contract column (or `emb_*`, `tag_*`, a column of users) → its columns in the file."""

    sources: dict[str, tuple[str, ...]]
    findings: tuple[Finding, ...]


def knows(contract: Contract, name: str) -> bool:
    """Whether a contract has a column of this name."""
    prefixes = [prefix for prefix in contract.prefix_columns if prefix]
    return name in contract.schema.names or any(name.startswith(prefix) and name != prefix for prefix in prefixes)


def choose_columns(columns: Sequence[str], contract: Contract, mapping: Mapping[str, str]) -> Chosen:
    """Sources of the contract's columns. mapping: contract column → source; `""` leaves the column out.

    A source is a column, `a+b` (topics: the union of both) or `a|b` (the first that is there). Raises InputError for an
    unknown name, and for a required column that nothing fills; the message lists what there is.
    """
    noun = contract.name
    findings: list[Finding] = []
    sources: dict[str, tuple[str, ...]] = {}
    for name, spec in mapping.items():
        if not knows(contract, name) and contract is not USERS:
            raise InputError(f"--map {name}={spec}: {noun} have no {name!r}; there are {_list(contract.schema.names)}")
        if spec:
            sources[name] = _sources(name, spec, columns, contract)
    ignored = {name for name, spec in mapping.items() if not spec}
    taken = {column for source in sources.values() for column in source}
    for name in columns:
        is_profile = contract is USERS and name not in taken
        if name not in sources and name not in ignored and (knows(contract, name) or is_profile):
            sources[name] = (name,)
    for name, aliases in ALIASES[noun].items():
        alias = next((a for a in aliases if a in columns and a not in taken), None)
        if name not in sources and name not in ignored and alias is not None:
            sources[name] = (alias,)
            findings.append(Finding(noun, name, f"is taken from column {alias}"))
    for name in contract.required:
        if name not in sources and name != "event_id":
            raise InputError(_missing(name, columns, contract))
    used = {part for source in sources.values() for column in source for part in _parts(column)}
    unused = [name for name in columns if name not in used and name not in ignored]
    if unused:
        findings.append(Finding(noun, "", f"left out, not in the contract: {_list(unused)}"))
    return Chosen(sources, tuple(findings))


def _sources(name: str, spec: str, columns: Collection[str], contract: Contract) -> tuple[str, ...]:
    for choice in [spec, *spec.split("|")] if "|" in spec else [spec]:
        parts = (choice,) if choice in columns else tuple(choice.split("+"))
        if all(part in columns for part in parts):
            if len(parts) > 1 and not (name == "topics" and contract is ITEMS):
                raise InputError(f"--map {name}={spec}: only topics can be made of several columns")
            return parts
    missing = next(part for part in spec.split("|")[-1].split("+") if part not in columns)
    raise InputError(f"--map {name}={spec}: {contract.name} have no column {missing!r}; there are {_list(columns)}")


def _parts(column: str) -> list[str]:
    """The columns of which reshape made one: `a` of `a.b`, `a` and `b` of `?a+b`."""
    return [column, column.split(".")[0], *(column[1:].split("+") if column.startswith("?") else ())]


def _missing(name: str, columns: Sequence[str], contract: Contract) -> str:
    near = _near(name, columns)
    advice = f"--map {name}={near}" if near else f"--map {name}=COLUMN"
    header = "; a file without a header needs --columns" if all(map(_looks_like_data, columns)) else ""
    return f"{contract.name}: no column {name!r}; there are {_list(columns)}; rename one with {advice}{header}"


def _near(name: str, columns: Sequence[str]) -> str | None:
    """A column that most likely is the one that is missing."""
    hints = _HINTS.get(name, "").split()
    bare = {column: re.sub(r"[^a-z0-9]", "", column.lower()) for column in columns}
    for wanted in (re.sub(r"[^a-z0-9]", "", name), *hints):
        for column, text in bare.items():
            if text == wanted:
                return column
    return None


def _looks_like_data(column: str) -> bool:
    return bool(re.fullmatch(r"[-+0-9.:/ TZ]*|[A-Za-z]{1,4}", column))


def _list(names: Collection[str]) -> str:
    shown = [" ".join(name.split()) for name in [*names][:40]]
    return ", ".join(shown) + (f" … ({len(names)} in all)" if len(names) > 40 else "")
