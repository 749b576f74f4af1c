"""What every test may use. Tests need no network, no accelerator and nothing outside this repository."""

import operator
import os
import random
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
for _name in [name for name in os.environ if name.startswith(("PLUMLINE_", "PREFECT_")) and name != "PLUMLINE_UPDATE"]:
    del os.environ[_name]  # the tests' answers must not depend on whoever runs them

from plumline.settings import switch_telemetry_off  # noqa: E402

switch_telemetry_off()

# a busy machine is not a bug: what may take how long is measured in benchmarks/, not here
hypothesis.settings.register_profile("plumline", deadline=None, derandomize=True)
hypothesis.settings.load_profile("plumline")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home: the graph, the recipes and the parameters of the repository, no data."""
    return make_home(tmp_path / "home")


def make_home(folder: Path) -> Path:
    """Copy what a clone brings with it to `folder`."""
    folder.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


DAY_MS = 86_400_000
COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
Holds = Callable[[str, Mapping[str, Any]], bool]


def make_rule(dice: random.Random, seen: Collection[str], at_ms: int, depth: int = 2) -> tuple[str, Holds]:
    """A random rule as text, and as plain Python over (item, its row with channel, price and published_ms).

    seen: the items that `seen` stands for. at_ms: when it is asked; ages count from the full minute before.
    """
    kind = dice.choice(["channel", "price", "fresh", "seen"] + (["not", "and", "or"] * 2 if depth else []))
    if kind == "channel":
        names = dice.sample(["a", "b", "c", "nobody"], dice.randint(1, 2))
        return "channel({})".format(", ".join(f'"{name}"' for name in names)), lambda _, row: row["channel"] in names
    if kind == "price":
        op, limit = dice.choice(list(COMPARE)), dice.randint(0, 9)
        return f"price {op} {limit}", lambda _, row: row["price"] is not None and COMPARE[op](row["price"], limit)
    if kind == "fresh":
        days = dice.randint(0, 30)
        since = at_ms // 60_000 * 60_000 - days * DAY_MS
        return f"fresh({days}d)", lambda _, row: row["published_ms"] >= since
    if kind == "seen":
        return "seen", lambda item, _: item in seen
    first, holds = make_rule(dice, seen, at_ms, depth - 1)
    if kind == "not":
        return f"~({first})", lambda item, row: not holds(item, row)
    second, also = make_rule(dice, seen, at_ms, depth - 1)
    if kind == "and":
        return f"({first}) & ({second})", lambda item, row: holds(item, row) and also(item, row)
    return f"({first}) | ({second})", lambda item, row: holds(item, row) or also(item, row)


@pytest.fixture(scope="session")
def a_rule() -> Callable[..., tuple[str, Holds]]:
    """`make_rule`, for tests (a test file cannot import its conftest)."""
    return make_rule


def judge_quickly(framed: Any, suite: str, parameters: Mapping[str, Any]) -> Any:
    """What `features.expectations.validation.validate` says of events, as far as ids, items, days and repetitions go.

    Without Great Expectations, which takes seconds to come and a quarter of one a table;
    tests/features/test_expectations.py compares the two.
    """
    import pyarrow.compute as pc

    from features.expectations.events import OTHER_DAY, REPEATED, UNKNOWN_ITEM

    del parameters
    if suite == "items":
        bad = {"nothing describes it": pc.invert(framed.column("described"))}
        return _verdict(bad)
    bad = {
        f"{name} missing": pc.is_null(framed.column(name)) for name in ("user_id", "item_id", "event_id", "timestamp")
    }
    named = {
        UNKNOWN_ITEM: "item_known",
        OTHER_DAY: "in_day",
        "quantity is 0": "quantity_counts",
        REPEATED: "first_of_id",
    }
    bad |= {reason: pc.invert(framed.column(name)) for reason, name in named.items()}
    bad["price below 0"] = pc.fill_null(pc.less(framed.column("price"), 0), False)
    return _verdict(bad)


def _verdict(bad: Mapping[str, Any]) -> Any:
    import numpy as np

    from features.expectations.events import REPEATED
    from features.expectations.validation import Check, Verdict

    rows = {reason: np.flatnonzero(np.asarray(which)) for reason, which in bad.items()}
    severity = {REPEATED: "warning"}
    checks = [
        Check(reason, "", severity.get(reason, "critical"), not len(found), float(len(found)), len(found))
        for reason, found in rows.items()
    ]
    return Verdict(tuple(checks), {reason: found for reason, found in rows.items() if len(found)})


@pytest.fixture
def quick_validation(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Stage `events` judges by `judge_quickly`, in this process."""
    from features import events

    monkeypatch.setattr(events, "validate", judge_quickly)
    return judge_quickly
