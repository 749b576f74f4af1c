"""Where the model is weak: figures of scores.json by kind of item and of user, and by SID instead of item.

    items/head, torso, tail   items by traffic, most first: those that make up half of all events up to as_of; the next
                              30%; the rest, with the items nobody took
    items/new                 first seen within NEW_ITEM_DAYS before as_of
    category/<name>           the NUM_CATEGORIES topics with the most traffic (channels, where no item has a topic);
                              `other`: items of none of them. Topics of more than half of the items say nothing
    history/cold              users with at most COLD_EVENTS events

A slice of items takes the queries that have a relevant item of its kind, and counts no other item as relevant. Items
have several topics, so categories overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import pyarrow as pa

from models.evaluation.queries import Ruler, Task
from plumline.tables import column

NEW_ITEM_DAYS = 7
COLD_EVENTS = 2
HEAD, TORSO = 0.5, 0.8
NUM_CATEGORIES = 5
OTHER = "other"
_LONGEST_NAME = 60

Groups = dict[str, dict[str, frozenset[str]]]


def group_items(items: pa.Table, traffic: Mapping[str, float], as_of: date) -> Groups:
    """Dimension → value → its live items. items: the catalogue's; traffic: item_id → events up to as_of."""
    live = items.filter(pa.array([not retired for retired in column(items, "retired")], pa.bool_()))
    item_ids = column(live, "item_id")
    since = as_of - timedelta(days=NEW_ITEM_DAYS)
    first_seen = zip(item_ids, column(live, "first_seen_day"), strict=True)
    new = frozenset(item for item, day in first_seen if day is not None and day > since)
    groups: Groups = {"items": {"new": new, **group_by_traffic(item_ids, traffic)}}
    labels = [_labels(row) for row in _columns(live, "topics")]
    if not any(labels):
        labels = [_labels([channel]) for channel in _columns(live, "channel")]
    if categories := group_by_label(item_ids, labels, traffic):
        groups["category"] = categories
    return groups


def group_by_traffic(item_ids: Sequence[str], traffic: Mapping[str, float]) -> dict[str, frozenset[str]]:
    """head, torso, tail. An item belongs where the traffic of the items before it ends; ties by id."""
    total = sum(traffic.get(item, 0.0) for item in item_ids)
    groups: dict[str, set[str]] = {"head": set(), "torso": set(), "tail": set()}
    before = 0.0
    for item in sorted(item_ids, key=lambda item: (-traffic.get(item, 0.0), item)):
        count = traffic.get(item, 0.0)
        share = before / total if count else 1.0
        groups["head" if share < HEAD else "torso" if share < TORSO else "tail"].add(item)
        before += count
    return {name: frozenset(members) for name, members in groups.items()}


def group_by_label(
    item_ids: Sequence[str], labels: Sequence[Sequence[str]], traffic: Mapping[str, float]
) -> dict[str, frozenset[str]]:
    """The labels with the most traffic, and `other`; {} without a label that tells items apart."""
    sizes = Counter(label for row in labels for label in row)
    telling = {label for label, size in sizes.items() if 2 * size <= len(item_ids)}
    weights = dict.fromkeys(telling, 0.0)
    for item, row in zip(item_ids, labels, strict=True):
        for label in telling.intersection(row):
            weights[label] += traffic.get(item, 0.0)
    largest = sorted(weights, key=lambda label: (-weights[label], label))[:NUM_CATEGORIES]
    if not largest:
        return {}
    members = {name: {item for item, row in zip(item_ids, labels, strict=True) if name in row} for name in largest}
    members[OTHER] = set(item_ids).difference(*members.values()) | members.get(OTHER, set())
    return {name: frozenset(those) for name, those in members.items()}


def measure_slices(
    ruler: Ruler, tasks: Mapping[str, Task], ranked: Mapping[str, list[list[str]]], groups: Groups
) -> dict[str, Any]:
    """dimension → value → protocol → figures of one method's lists."""
    slices: dict[str, Any] = {name: {value: {} for value in values} for name, values in groups.items()}
    slices["history"] = {"cold": {}}
    for protocol, task in tasks.items():
        rows = task.rows(ranked[protocol])
        for name, values in groups.items():
            for value, members in values.items():
                asked = [(query, items, kept) for query, items, relevant in rows if (kept := relevant & members)]
                slices[name][value][protocol] = ruler.measure_rows(asked)
        cold = [row for row in rows if len(row[0].history) <= COLD_EVENTS]
        slices["history"]["cold"][protocol] = ruler.measure_rows(cold)
    return slices


def measure_few_slices(
    ruler: Ruler, tasks: Mapping[str, Task], ranked: Mapping[str, list[list[str]]], groups: Groups
) -> dict[str, Any]:
    """ "items/new", "items/tail", "history/cold" → protocol → figures: where methods differ first."""
    few = {"items": {name: groups["items"][name] for name in ("new", "tail")}}
    slices = measure_slices(ruler, tasks, ranked, few)
    return {
        f"{dimension}/{value}": figures for dimension, values in slices.items() for value, figures in values.items()
    }


def measure_by_sid(
    ruler: Ruler,
    tasks: Mapping[str, Task],
    ranked: Mapping[str, list[list[str]]],
    codes_of: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """protocol → figures where an item stands for its SID: a hit is an item with the SID of a relevant one.

    As many places as in the item-level list, less those whose SID was there before. The gap to item level is what
    items that share a SID cost. An item without a SID is known by its id.
    """

    def sid(item: str) -> str:
        return " ".join(map(str, codes_of[item])) if item in codes_of else f"item {item}"

    figures = {}
    for protocol, task in tasks.items():
        rows = [
            (query, list(dict.fromkeys(map(sid, items))), frozenset(map(sid, relevant)))
            for query, items, relevant in task.rows(ranked[protocol])
        ]
        figures[protocol] = ruler.measure_rows(rows)
    return figures


def _columns(items: pa.Table, name: str) -> list[Any]:
    return column(items, name) if name in items.column_names else [None] * items.num_rows


def _labels(values: Sequence[str | None] | None) -> list[str]:
    """Names as one line each, not too long: they come from outside and go into keys of scores.json."""
    names = (" ".join(value.split())[:_LONGEST_NAME] for value in values or [] if value)
    return [name for name in dict.fromkeys(names) if name]
