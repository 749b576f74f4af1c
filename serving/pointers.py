"""Which release answers: `releases/pointers/champion.json`, moved by promote and rollback; and what is never served.

    releases/sealed/<id>/             releases (copied there by flows/steps/registry.py)
    releases/pointers/champion.json   {"release_id", "fencing", "previous", "history", "action"}
    releases/pointers/candidate.json  the same, of the release that waits for its verdict
    releases/tombstones.json          {"item_ids": […]}: never served from this home again, whatever the release

A pointer file is replaced in one rename, so a reader (every serving worker, twice a second) sees the old or the new.
Every change adds one to `fencing`. Who wants to promote says which number the decision was based on; a writer that
slept through somebody else's change is refused. A release is verified, byte by byte, before anything points at it.
A Bento carries a pointer of its own and no tombstones (serving/deploy.py).
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from plumline import artifact
from plumline.crash import crash_point
from plumline.errors import ArtifactError, CorruptArtifactError, MissingArtifactError, MixedReleaseError, RefusedError
from serving.release import Release, check_release_id

CHAMPION = "champion"
CANDIDATE = "candidate"
_MAX_HISTORY = 100
_LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Pointer:
    """One state of a pointer.

    release_id: the release pointed at. fencing: number of this change, from 1. history: what a rollback goes back
    through, oldest first. action: "promote" or "rollback".
    """

    release_id: str
    fencing: int
    history: tuple[str, ...] = ()
    action: str = "promote"

    @property
    def previous(self) -> str | None:
        """Where one rollback leads."""
        return self.history[-1] if self.history else None


def sealed_folder(releases: Path, release_id: str) -> Path:
    """Where a release lies. Raises InputError if the id is none."""
    return releases / "sealed" / check_release_id(release_id)


def pointer_path(releases: Path, name: str = CHAMPION) -> Path:
    """The pointer file."""
    return releases / "pointers" / f"{name}.json"


def read_pointer(releases: Path, name: str = CHAMPION) -> Pointer | None:
    """The pointer now; None if nothing was ever promoted. Raises CorruptArtifactError naming the file."""
    path = pointer_path(releases, name)
    if not path.exists():
        return None
    raw = artifact.read_json(path)
    try:
        return Pointer(str(raw["release_id"]), int(raw["fencing"]), tuple(raw["history"]), str(raw["action"]))
    except (KeyError, TypeError, ValueError):
        raise CorruptArtifactError(f"{path}: not a pointer; promote a release again (plumline promote)") from None


def fencing(releases: Path, name: str = CHAMPION) -> int:
    """The number a decision is based on: read it before the work starts, hand it to `promote`. 0: no pointer yet."""
    pointer = read_pointer(releases, name)
    return pointer.fencing if pointer else 0


def promote(releases: Path, release_id: str, *, expected: int, name: str = CHAMPION) -> Pointer:
    """Point at a release. Idempotent: where the pointer already names it, nothing changes.

    expected: `fencing()` when the decision was begun. Raises RefusedError if somebody moved the pointer since or there
    is no such release, CorruptArtifactError or MixedReleaseError if it cannot be trusted; the pointer then stays.
    """
    with _lock(releases):
        current = read_pointer(releases, name)
        if current is not None and current.release_id == release_id:
            return current
        now = current.fencing if current else 0
        if now != expected:
            raise RefusedError(
                f"{name} moved meanwhile: this promotion was based on number {expected}, it is now {now} "
                f"({current.release_id if current else 'none'}); look at plumline status and decide again"
            )
        _verify(releases, release_id)
        history = (*current.history, current.release_id)[-_MAX_HISTORY:] if current else ()
        pointer = Pointer(release_id, now + 1, history, "promote")
        _write(releases, name, pointer)
        return pointer


def rollback(releases: Path, name: str = CHAMPION) -> Pointer:
    """Point at the release before; again, at the one before that. Tombstones stay.

    Raises RefusedError, and keeps the current one, if there is none before or it is gone or damaged.
    """
    with _lock(releases):
        current = read_pointer(releases, name)
        if current is None or current.previous is None:
            raise RefusedError("nothing to roll back to: no release was champion before this one")
        try:
            _verify(releases, current.previous)
        except ArtifactError as error:
            raise RefusedError(f"cannot roll back to {current.previous}, {current.release_id} stays: {error}") from None
        pointer = Pointer(current.previous, current.fencing + 1, current.history[:-1], "rollback")
        _write(releases, name, pointer)
        return pointer


def _verify(releases: Path, release_id: str) -> Release:
    folder = sealed_folder(releases, release_id)
    if not folder.is_dir():
        known = sorted(path.name for path in folder.parent.glob("[!.]*")) if folder.parent.is_dir() else []
        raise RefusedError(f"no release {release_id!r} in {folder.parent}; there are {known}")
    try:
        release = Release.load(folder)
    except MissingArtifactError as error:
        raise CorruptArtifactError(str(error)) from None
    if release.release_id != release_id:
        raise MixedReleaseError(f"{folder}: holds release {release.release_id}; restore it from the registry")
    return release


def _write(releases: Path, name: str, pointer: Pointer) -> None:
    crash_point("promote", "verified")
    text = json.dumps({**asdict(pointer), "previous": pointer.previous}, indent=2, sort_keys=True)
    artifact.replace_file(pointer_path(releases, name), text + "\n")
    crash_point("promote", "moved")


def tombstones_path(releases: Path) -> Path:
    """The file of item ids that are never served."""
    return releases / "tombstones.json"


def read_tombstones(releases: Path) -> frozenset[str]:
    """Items that must never be served, whatever the release. Raises CorruptArtifactError: not to know is no licence."""
    path = tombstones_path(releases)
    if not path.exists():
        return frozenset()
    raw = artifact.read_json(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("item_ids"), list):
        raise CorruptArtifactError(f"{path}: not a list of tombstones; restore it from a backup before serving")
    return frozenset(map(str, raw["item_ids"]))


def add_tombstones(releases: Path, item_ids: Iterable[str]) -> frozenset[str]:
    """Delete items for good; returns all tombstones. There is no way back: a deleted item stays deleted."""
    with _lock(releases):
        union = read_tombstones(releases) | frozenset(item_ids)
        artifact.replace_file(tombstones_path(releases), json.dumps({"item_ids": sorted(union)}) + "\n")
        return union


@contextlib.contextmanager
def _lock(releases: Path) -> Iterator[None]:
    """One writer at a time; the lock ends with its process. Raises RefusedError after ten seconds."""
    folder = releases / "pointers"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RefusedError(
                        f"{file.name}: another promotion or rollback holds the lock for {_LOCK_SECONDS:.0f} s; "
                        f"look for a hanging process and try again"
                    ) from None
                time.sleep(0.05)
        yield
