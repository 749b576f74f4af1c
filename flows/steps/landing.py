"""`plumline init` and `plumline land`: files from outside → data/landing, told in one line a finding."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flows.steps.calendar import holdout_as_of, landed_days
from flows.steps.graph import read_params
from plumline import artifact
from plumline.errors import InputError, RefusedError
from plumline.stage import read_recipe, say

if TYPE_CHECKING:
    import pyarrow as pa


def init_home(
    home: Path,
    *,
    items: Path,
    events: Path,
    users: Path | None,
    mapping: Sequence[str],
    recipe: str,
    as_of: str | None = None,
) -> None:
    """Check the files, land them, and write recipe and as_of into params.yaml. The same files again change nothing.

    as_of: None takes a day that leaves the last two weeks (or fifth) of the log for scoring.
    Raises InputError after one line a problem, RefusedError where other data has landed already.
    """
    read_params(home)
    recipe_path = Path("recipes") / f"{recipe}.yaml"
    read_recipe(home / recipe_path)
    paths = {"items": items, "events": events, **({"users": users} if users else {})}
    source = {name: _file_hash(name, path) for name, path in paths.items()}
    source["map"] = " ".join(sorted(mapping))
    note = home / ".plumline" / "init.json"
    if landed_days(home) and (not note.exists() or artifact.read_json(note)["source"] != source):
        raise RefusedError(
            f"{home / 'data' / 'landing'} holds other data; add to it with plumline land, or make clean first"
        )
    if not landed_days(home):
        _land(home, paths, mapping)
        artifact.replace_file(note, json.dumps({"source": source}, indent=2) + "\n")
    day = as_of or holdout_as_of(home).isoformat()
    _write_params(home, {"recipe": recipe_path.as_posix(), "as_of": day})
    days = landed_days(home)
    say(f"{len(days)} days have landed, {days[0]} to {days[-1]}; recipe {recipe}, as_of {day} (params.yaml)")
    say("next: plumline bootstrap")


def land_more(
    home: Path, *, items: Path | None, events: Path | None, users: Path | None, mapping: Sequence[str]
) -> None:
    """Land further files beside what is there. Raises InputError after one line a problem."""
    given = {"items": items, "events": events, "users": users}
    paths = {name: path for name, path in given.items() if path is not None}
    for name, path in paths.items():
        _file_hash(name, path)
    _land(home, paths, mapping)
    days = landed_days(home)
    say(f"{len(days)} days have landed, the last is {days[-1] if days else 'none'}; next: plumline daily")


def _land(home: Path, paths: dict[str, Path], mapping: Sequence[str]) -> None:
    from features.landing import check, known_items, land, read_table, rename, split_mapping
    from plumline.schema import EVENTS, ITEMS, USERS

    contracts = {"items": ITEMS, "events": EVENTS, "users": USERS}
    now = datetime.now(UTC)
    raw = {name: read_table(path) for name, path in paths.items()}
    by_table = split_mapping(list(mapping), raw)
    tables: dict[str, pa.Table] = {}
    for name, table in raw.items():
        renamed = rename(table, contracts[name], by_table[name])
        tables[name] = renamed.table
        for note in renamed.notes:
            say(note)
    landing = home / "data" / "landing"
    problems = check(
        tables.get("items"), tables.get("events"), tables.get("users"), now=now, known=known_items(landing)
    )
    for problem in problems:
        say(f"{'refused' if problem.fatal else 'warning'}: {problem}")
    fatal = sum(problem.fatal for problem in problems)
    if fatal:
        raise InputError(f"nothing was landed: {fatal} problem{'s' if fatal > 1 else ''} above must be mended first")
    (home / "data" / "traffic").mkdir(parents=True, exist_ok=True)
    land(
        tables.get("items"),
        tables.get("events"),
        tables.get("users"),
        landing=landing,
        source=", ".join(path.name for path in paths.values()),
        now=now,
    )


def _file_hash(name: str, path: Path) -> str:
    if not path.is_file():
        raise InputError(f"--{name} {path}: no such file")
    return artifact.sha256_file(path)


def _write_params(home: Path, values: dict[str, str]) -> None:
    """Change lines of params.yaml and keep its comments."""
    text = (home / "params.yaml").read_text(encoding="utf-8")
    for name, value in values.items():
        quoted = f'"{value}"' if re.fullmatch(r"[\d-]+", value) else value
        text = re.sub(rf'(?m)^{name}:(\s*)("[^"\n]*"|[^#\n]*?)(\s*)(#.*)?$', rf"{name}:\g<1>{quoted}\g<3>\g<4>", text)
    artifact.replace_file(home / "params.yaml", text)
