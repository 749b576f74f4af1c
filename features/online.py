"""The online features of a user (history, profile): pushed daily, read while a request waits. The only Feast caller.

    data/online/registry.db, online.db   Feast's own (features/store/feature_store.yaml, or PLUMLINE_FEATURE_STORE)
    data/online/version.json             {"version", "as_of", "complete", "num_users"}: which push the store is of

What Feast 0.67 does not do and this module does:
* nothing goes backwards: SQLite lets an older push overwrite a newer one, so a push of an older day is skipped;
* a version a push: a row of an earlier version belongs to a user who is in the histories no more, and is not read;
* age: Feast returns values past their ttl, so the reader compares the row's day with the one it needs;
* time: a read that hangs ends in `degraded` after `timeout_s`, never in an exception or a silent empty history.

Feast takes 5 to 19 s to import; nothing imports it before the first push or `OnlineFeatures.open`.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
from tqdm import tqdm

from plumline import artifact
from plumline.crash import crash_point
from plumline.errors import ArtifactError, CorruptArtifactError, InputError, MissingArtifactError, PlumlineError
from plumline.schema import NUMBERS
from plumline.settings import get_settings
from plumline.stage import CODE_ROOT, say

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast import FeatureStore

MAX_HISTORY = 200
"""Events of a history that the online store keeps, the most recent ones."""
_CHUNK = 1000
_FORM = "numbers"
"""What rows hold; another name for another form, so that what older code pushed of these artifacts is pushed anew."""
_HOME = "${PLUMLINE_HOME}"
_SERVICE = "online_user"


@dataclass(frozen=True)
class OnlineVersion:
    """Which push the store is of. complete: whether that push got through."""

    version: str
    as_of: date
    complete: bool
    num_users: int


@dataclass(frozen=True)
class OnlineUser:
    """What is known of a user now.

    history: (item_id, epoch ms), oldest first. profile: column → value. event_ms: end of the day the features are of.
    numbers: numeric column of events → value of each event of the history, None where it is not known; columns of which
    nothing is known, and all in a store that was pushed before there were any, are left out.
    found: whether the store knows the user. degraded: the store gave no answer that can be used, and `reason` says why
    ("timeout", "stale", "error"); the empty history then means nothing.
    """

    history: tuple[tuple[str, int], ...] = ()
    profile: Mapping[str, str] | None = None
    event_ms: int | None = None
    version: str | None = None
    found: bool = False
    degraded: bool = False
    reason: str = ""
    numbers: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


def end_of_day_ms(day: date) -> int:
    """Last millisecond of a UTC day, epoch ms."""
    return int(datetime.combine(day + timedelta(days=1), time(), UTC).timestamp() * 1000) - 1


def online_folder(home: Path) -> Path:
    """Where the store's files lie."""
    return home / "data" / "online"


def read_version(home: Path) -> OnlineVersion | None:
    """The store's version; None if nothing was ever pushed. Raises CorruptArtifactError naming the file."""
    path = online_folder(home) / "version.json"
    if not path.exists():
        return None
    raw = artifact.read_json(path)
    try:
        return OnlineVersion(
            raw["version"], date.fromisoformat(raw["as_of"]), bool(raw["complete"]), int(raw["num_users"])
        )
    except (KeyError, TypeError, ValueError):
        raise CorruptArtifactError(f"{path}: not a version; delete data/online and push again") from None


def _write_version(home: Path, version: OnlineVersion) -> None:
    raw = {
        "version": version.version,
        "as_of": version.as_of.isoformat(),
        "complete": version.complete,
        "num_users": version.num_users,
    }
    artifact.replace_file(online_folder(home) / "version.json", json.dumps(raw, indent=2) + "\n")


def push_histories(histories: Path, catalog: Path, as_of: date, home: Path) -> OnlineVersion:
    """Push every user's history and profile, stamped with the end of `as_of`; returns the version that is online then.

    histories, catalog: artifacts. Idempotent: the same histories and catalogue are pushed once; a day before the one
    that is online is skipped. Killed half-way, the next push of that day or a later one heals it.
    """
    version = _version_of(histories, catalog, as_of)
    with _push_lock(home):
        online = read_version(home)
        if online is not None and online.as_of > as_of:
            say(f"online features: {online.as_of} is online already, {as_of} is older and was not pushed")
            return online
        if online is not None and online.version == version and online.complete:
            say(f"online features: {version} is online already")
            return online
        table = _rows(histories, catalog, version, as_of)
        _write_version(home, OnlineVersion(version, as_of, False, len(table)))
        store = _open_store(home, apply=True)
        for start in tqdm(
            range(0, len(table), _CHUNK), desc="online features", unit="chunk", disable=len(table) < 5000
        ):
            chunk = table.iloc[start : start + _CHUNK]
            store.push("user_history_push", chunk.drop(columns=["profile"]))
            store.push("user_profile_push", chunk[["user_id", "profile", "event_timestamp", "created"]])
            crash_point("online", "chunk")
        done = OnlineVersion(version, as_of, True, len(table))
        _write_version(home, done)
        return done


def _version_of(histories: Path, catalog: Path, as_of: date) -> str:
    digests = [artifact.read_manifest(folder).digest for folder in (histories, catalog)]
    return f"{as_of.isoformat()}-{artifact.sha256_json([_FORM, *digests])[:8]}"


def _rows(histories: Path, catalog: Path, version: str, as_of: date) -> "pd.DataFrame":
    """One row a user who has a history or a profile."""
    import pandas as pd

    from features.catalog import Catalog
    from features.histories import read_histories

    profiles: dict[str, dict[str, str]] = {}
    for row in Catalog.load(catalog).users.to_pylist():
        profiles[row["user_id"]] = _profile(row)
    table = read_histories(histories)
    columns = [table.column(name).to_pylist() for name in ("user_id", "item_ids", "timestamps")]
    known = {user: (items, times) for user, items, times in zip(*columns, strict=True)}
    users = sorted(known.keys() | profiles.keys())
    numbers = dict(zip(columns[0], _numbers(table), strict=True))
    stamp = pd.Timestamp(end_of_day_ms(as_of), unit="ms", tz="UTC")
    return pd.DataFrame(
        {
            "user_id": users,
            "item_ids": [list(known[user][0][-MAX_HISTORY:]) if user in known else [] for user in users],
            "timestamps": [list(known[user][1][-MAX_HISTORY:]) if user in known else [] for user in users],
            "numbers": [artifact.canonical_json(numbers.get(user, {})) for user in users],
            "profile": [artifact.canonical_json(profiles.get(user, {})) for user in users],
            "version": version,
            "event_timestamp": stamp,
            "created": stamp,
        }
    )


def _numbers(histories: "pa.Table") -> list[dict[str, tuple[float | None, ...]]]:
    """Of each row of HISTORIES: column → values of its newest MAX_HISTORY events; columns without any left out."""
    found: list[dict[str, tuple[float | None, ...]]] = [{} for _ in range(histories.num_rows)]
    for name in NUMBERS:
        for told, values in zip(found, histories.column(name).to_pylist(), strict=True):
            newest = tuple(values[-MAX_HISTORY:]) if values else ()
            if any(value is not None for value in newest):
                told[name] = newest
    return found


def _open_store(home: Path, *, apply: bool) -> "FeatureStore":
    """Feast over this home's files. apply: register the definitions first."""
    import yaml
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    online_folder(home).mkdir(parents=True, exist_ok=True)
    path = get_settings().feature_store or CODE_ROOT / "features" / "store" / "feature_store.yaml"
    try:
        text = os.path.expandvars(path.read_text(encoding="utf-8").replace(_HOME, str(home.resolve())))
        config = RepoConfig(**yaml.safe_load(text))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: no feature store of Feast's ({' '.join(str(error).split())[:300]})") from None
    config.repo_path = home.resolve()
    store = FeatureStore(config=config)
    if apply:
        from features.store import definitions

        store.apply(
            [
                definitions.user,
                definitions.user_history_push,
                definitions.user_profile_push,
                definitions.user_history,
                definitions.user_profile,
                definitions.online_user,
            ]
        )
        store.refresh_registry()  # it is cached, and a cache of before `apply` knows no push source
        if config.online_store.type == "sqlite":
            with contextlib.closing(sqlite3.connect(config.online_store.path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # readers go on while a push writes
    return store


class OnlineFeatures:
    """Reads users from the store, with a time limit. One thread reads; close it with `close`."""

    def __init__(self, store: "FeatureStore", home: Path) -> None:
        self._store = store
        self._service = store.get_feature_service(_SERVICE)
        self._home = home
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="online-features")
        self._version_stamp = (0, 0)
        self._version: OnlineVersion | None = None

    @classmethod
    def open(cls, home: Path) -> "OnlineFeatures":
        """Import Feast (seconds), open the store and read once to warm it.

        Raises MissingArtifactError if nothing was pushed yet, InputError if the feature store's file is no good.
        """
        if read_version(home) is None:
            raise MissingArtifactError(f"{online_folder(home)}: no online features; plumline daily pushes them")
        features = cls(_open_store(home, apply=False), home)
        features._read("")
        return features

    def close(self) -> None:
        """Let go of the reading thread, without waiting for a read that hangs."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def read(self, user_id: str, timeout_s: float = 0.05, not_before: date | None = None) -> OnlineUser:
        """What the store knows of a user, or why it cannot say. Never raises for what a store can do wrong.

        timeout_s: seconds to wait. not_before: features of a day before this one are `stale`.
        """
        future: Future[OnlineUser] = self._reader.submit(self._read, user_id)
        try:
            user = future.result(timeout_s)
        except FutureTimeoutError:
            future.cancel()
            return OnlineUser(degraded=True, reason="timeout")
        except Exception as error:  # whatever driver stands behind Feast, an answer without features beats none
            say(f"online features: reading failed ({type(error).__name__}: {error})")
            return OnlineUser(degraded=True, reason="error")
        return _unless_stale(user, not_before)

    def _read(self, user_id: str) -> OnlineUser:
        service = self._service
        values = self._read_row(user_id)
        current = values["version"] is None or self._is_current(values["version"])
        if not current or self._service is not service:
            values = self._read_row(user_id)  # a push may have ended between the row and version.json: look once more
            if not self._is_current(values["version"]):
                return OnlineUser()  # left over from an earlier push: the user is gone
        if values["version"] is None:
            return OnlineUser()
        return OnlineUser(
            history=tuple(zip(values["item_ids"] or (), values["timestamps"] or (), strict=True)),
            profile=json.loads(values["profile"] or "{}"),
            event_ms=values["version__ts"] * 1000 + 999,  # Feast keeps whole seconds of the day's last millisecond
            version=values["version"],
            found=True,
            numbers={name: tuple(told) for name, told in json.loads(values.get("numbers") or "{}").items()},
        )

    def _read_row(self, user_id: str) -> dict[str, Any]:
        answer = self._store.get_online_features(features=self._service, entity_rows=[{"user_id": user_id}])
        return {name: column[0] for name, column in answer.to_dict(include_event_timestamps=True).items()}

    @property
    def _knows_numbers(self) -> bool:
        views = self._service.feature_view_projections
        return any(feature.name == "numbers" for view in views for feature in view.features)

    def _is_current(self, version: str | None) -> bool:
        online = self._online_version()
        return online is None or not online.complete or online.version == version

    def _online_version(self) -> OnlineVersion | None:
        """version.json, read again when it was replaced."""
        status = (online_folder(self._home) / "version.json").stat()
        if (status.st_mtime_ns, status.st_ino) != self._version_stamp:
            self._version = read_version(self._home)
            self._version_stamp = (status.st_mtime_ns, status.st_ino)
            if not self._knows_numbers and self._version is not None and self._version.complete:
                self._store.refresh_registry()  # this push may be the first of a form that was not known at `open`
                self._service = self._store.get_feature_service(_SERVICE)
        return self._version


def _unless_stale(user: OnlineUser, not_before: date | None) -> OnlineUser:
    if user.found and not_before is not None and (user.event_ms or 0) < end_of_day_ms(not_before):
        return OnlineUser(event_ms=user.event_ms, version=user.version, found=True, degraded=True, reason="stale")
    return user


class PushedFeatures:
    """What was pushed, read from the artifacts that it was pushed from, without the seconds that Feast takes to import.

    For a process that asks for one user and ends. It answers as `OnlineFeatures` does (a test compares the two), while
    the store holds exactly these artifacts, which their digests in its version say. It does not notice a store that is
    broken or slow; the service does.
    """

    def __init__(self, home: Path, online: OnlineVersion) -> None:
        self._home, self._online = home, online

    @classmethod
    def find(cls, home: Path) -> "PushedFeatures | None":
        """None if artifacts/ no longer holds what is online; ask `OnlineFeatures` then.

        Raises MissingArtifactError if nothing was pushed yet.
        """
        online = read_version(home)
        if online is None:
            raise MissingArtifactError(f"{online_folder(home)}: no online features; plumline daily pushes them")
        folders = [home / "artifacts" / name for name in ("histories", "catalog")]
        try:
            version = _version_of(folders[0], folders[1], online.as_of)
            for folder in folders:
                artifact.verify(folder)
        except ArtifactError:
            return None
        return cls(home, online) if online.complete and online.version == version else None

    def read(self, user_id: str, timeout_s: float = 0.0, not_before: date | None = None) -> OnlineUser:
        """As `OnlineFeatures.read`; nothing here can hang, so timeout_s counts for nothing."""
        from features.catalog import Catalog
        from features.histories import read_histories

        history = read_histories(self._home / "artifacts" / "histories")
        history = history.filter(pc.equal(history.column("user_id"), user_id))
        users = Catalog.load(self._home / "artifacts" / "catalog").users
        profiles = users.filter(pc.equal(users.column("user_id"), user_id)).to_pylist()
        if not history.num_rows and not profiles:
            return OnlineUser()
        items, times = (history.column(name).to_pylist() for name in ("item_ids", "timestamps"))
        user = OnlineUser(
            history=tuple(zip(items[0], times[0], strict=True))[-MAX_HISTORY:] if items else (),
            profile=_profile(profiles[0]) if profiles else {},
            event_ms=end_of_day_ms(self._online.as_of),
            version=self._online.version,
            found=True,
            numbers=_numbers(history)[0] if items else {},
        )
        return _unless_stale(user, not_before)


def _profile(row: dict[str, Any]) -> dict[str, str]:
    """A row of the users as prompts read it: without its id, and without what is empty."""
    return {name: str(value) for name, value in row.items() if value and name != "user_id"}


@contextlib.contextmanager
def _push_lock(home: Path) -> Iterator[None]:
    """One push at a time; the lock ends with its process."""
    online_folder(home).mkdir(parents=True, exist_ok=True)
    with (online_folder(home) / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str]) -> None:
    """`python -m features.online HISTORIES CATALOG AS_OF HOME`: push, and end as a stage does."""
    histories, catalog, as_of, home = argv
    try:
        push_histories(Path(histories), Path(catalog), date.fromisoformat(as_of), Path(home))
    except PlumlineError as error:
        say(f"features: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
