"""Promotion and rollback: one pointer moves, and a line says who moved it why."""

import json
from datetime import UTC, datetime
from pathlib import Path

from flows.steps.registry import Registry
from flows.steps.verdicts import require_verdict
from serving import pointers


def promote(home: Path, release_id: str, *, expected: int | None = None, override: str = "") -> pointers.Pointer:
    """Point the champion at a release that the gate passed.

    expected: fencing number that the decision was based on (None: the one now). override: a person's reason to promote
    without a verdict; it is logged. Raises RefusedError, and nothing has moved.
    """
    registry = Registry(home)
    registry.restore(release_id)
    if not override:
        require_verdict(home, release_id)
    fencing = pointers.fencing(registry.root) if expected is None else expected
    pointer = pointers.promote(registry.root, release_id, expected=fencing)
    _log(registry, pointer, override)
    return pointer


def rollback(home: Path) -> pointers.Pointer:
    """Point the champion at the release before."""
    registry = Registry(home)
    champion = pointers.read_pointer(registry.root)
    if champion is not None and champion.previous is not None:
        registry.restore(champion.previous)
    pointer = pointers.rollback(registry.root)
    _log(registry, pointer, "")
    return pointer


def _log(registry: Registry, pointer: pointers.Pointer, override: str) -> None:
    row = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "action": pointer.action,
        "release_id": pointer.release_id,
        "fencing": pointer.fencing,
        "override": override,
    }
    with (registry.root / "promotions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")
