"""`plumline recommend`: the champion in this process, asked as the service would be.

A person waits for it, so what takes seconds to import is left out where it is not needed: Feast while artifacts/ still
holds what was pushed online, transformers while the model is a plain one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumline.errors import InputError, RefusedError
from plumline.settings import clock_offset
from serving.pointers import read_pointer, read_tombstones, sealed_folder

if TYPE_CHECKING:
    from serving.recommender import Recommendation

_LONG_TITLE = 60
_NAMED = 5
"""Unknown items that are told by name."""


@dataclass(frozen=True)
class Answer:
    """A recommendation, ready to print. prices: item → price, of the items that have one. note: what a person may want
    to know besides, "" for nothing."""

    recommendation: "Recommendation"
    prices: dict[str, float]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields of `POST /recommend`'s answer, less its request_id, and the prices."""
        found = self.recommendation
        items = [
            {
                "item_id": i.item_id,
                "title": i.title,
                "price": self.prices.get(i.item_id),
                "sid": i.sid,
                "score": i.score,
                "why": [{"part": r.part, "share": r.share, "items": list(r.items), "words": r.words} for r in i.why],
            }
            for i in found.items
        ]
        return {
            "release_id": found.release_id,
            "items": items,
            "degraded": found.degraded,
            "reason": found.reason,
            "detail": found.detail,
            "num_allowed": found.num_allowed,
            "ranked": found.ranked,
            "note": self.note,
        }

    def lines(self, verbose: bool = False) -> list[str]:
        """A table for people: rank, item, title, price, why; verbose: SID, score and every part's share too."""
        rows = [["", "item", "title", "price", *(["SID", "score"] if verbose else []), "why"]]
        for rank, item in enumerate(self.recommendation.items, start=1):
            price, title = self.prices.get(item.item_id), item.title or ""
            short = title if len(title) <= _LONG_TITLE else f"{title[: _LONG_TITLE - 1]}…"
            cells = [str(rank), item.item_id, short, "" if price is None else f"{price:.2f}"]
            cells += [item.sid, f"{item.score:.4f}"] if verbose else []
            parts = [f"{reason.words} ({reason.share:.0%})" if verbose else reason.words for reason in item.why]
            rows.append([*cells, "; ".join(parts if verbose else parts[:1])])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        right = {0, 3, 5} if verbose else {0, 3}
        lines = [
            "  ".join(
                cell.rjust(width) if place in right else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        said = ": ".join(part for part in (self.recommendation.reason, self.recommendation.detail) if part)
        return [*(lines if self.recommendation.items else []), *(f"# {line}" for line in (said, self.note) if line)]


def recommend(
    home: Path,
    *,
    user: str | None,
    history: Sequence[str] | None,
    num_items: int,
    rule: str | None = None,
    now: datetime | None = None,
    max_per_branch: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    exclude_seen: bool = False,
    retrieval_only: bool = False,
) -> Answer:
    """Ask for `num_items` items. Exactly one of user (read from the online store) and history must be given.

    history: ids, ids with commas between them, or @FILE with one a line. now: from when the rule counts ages; None:
    this moment. See `Recommender.recommend` and `models/retrieval/beam.py` for the others.
    """
    if (user is None) == (history is None):
        raise InputError("give --user ID or --history ID,ID…, one of the two")
    words = [read_ids(value) for value in history or []]
    pointer = read_pointer(home / "releases")
    if pointer is None:
        raise RefusedError("no champion yet; run plumline bootstrap first")
    if rule is not None:
        from models.retrieval.rules import parse

        parse(rule)  # before anything is loaded
    from models.retrieval.beam import Choice
    from serving.recommender import Recommender

    recommender = Recommender.load(
        sealed_folder(home / "releases", pointer.release_id),
        tombstones=read_tombstones(home / "releases"),
        plain=True,
    )
    asked: dict[str, Any] = {
        "k": num_items,
        "rule": rule,
        "now_ms": int((now or datetime.now(UTC) + clock_offset()).timestamp() * 1000),
        "choice": Choice(cap=max_per_branch, temperature=temperature, seed=seed),
        "exclude_seen": exclude_seen,
        "retrieval_only": retrieval_only,
    }
    if user is None:
        given = [item for word in words for item in split_ids(word, recommender.knows)]
        unknown = [item for item in given if not recommender.knows(item)]
        found = recommender.recommend(history=given, **asked)
        named = ", ".join(list(recommender.titles)[:2])
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        names = ", ".join(map(repr, unknown[:_NAMED])) + more
        note = f"{len(unknown)} of {len(given)} items of the history are unknown: {names}" if given else "no history"
        if not found.history_length:
            note += f"; items are called, for example, {named}"
        elif not unknown:
            note = ""
    else:
        found, note = _ask_for_user(home, recommender, user, asked)
    return Answer(found, _prices(recommender, [item.item_id for item in found.items]), note)


def read_ids(value: str) -> str | list[str]:
    """A word of --history as it is, or the lines of @FILE. Raises InputError naming the file."""
    if not value.startswith("@"):
        return value
    try:
        lines = Path(value[1:]).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "no UTF-8"
        raise InputError(f"--history {value}: cannot be read ({said}); give a text file with one id a line") from None
    return [line.strip() for line in lines if line.strip()]


def split_ids(word: str | list[str], knows: Callable[[str], bool]) -> list[str]:
    """The ids of a word of --history: lines of a file are ids, and so is a word that the release knows as a whole."""
    if isinstance(word, list):
        return word
    return [word] if knows(word) else [item for item in word.split(",") if item]


def _ask_for_user(home: Path, recommender: Any, user: str, asked: dict[str, Any]) -> tuple["Recommendation", str]:
    from features.online import OnlineFeatures, PushedFeatures

    pushed = PushedFeatures.find(home)
    if pushed is not None:
        found = recommender.recommend(user_id=user, features=pushed, **asked)
        known = found.reason != "cold" or pushed.read(user).found
    else:
        online = OnlineFeatures.open(home)
        try:
            known = online.read(user, timeout_s=60.0).found  # the first call builds the client, which takes a second
            found = recommender.recommend(user_id=user, features=online, **asked)
        finally:
            online.close()
    if found.reason != "cold":
        return found, ""
    if known:
        return found, f"user {user!r} has no history of items that this release knows"
    from features.histories import read_some_users

    named = ", ".join(read_some_users(home / "artifacts" / "histories", 2))
    return found, f"nobody knows user {user!r}" + (f"; users are called, for example, {named}" if named else "")


def _prices(recommender: Any, item_ids: list[str]) -> dict[str, float]:
    from features.catalog import Catalog

    items = Catalog.load(recommender.release.path("catalog")).items
    if "price" not in items.column_names:
        return {}
    prices = dict(zip(items.column("item_id").to_pylist(), items.column("price").to_pylist(), strict=True))
    return {item: float(prices[item]) for item in item_ids if prices.get(item) is not None}
