"""What goes online comes back, never older, never past its time, and never as a silent nothing."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features import online
from features.online import (
    OnlineFeatures,
    OnlineUser,
    PushedFeatures,
    end_of_day_ms,
    online_folder,
    push_histories,
    read_version,
)
from plumline import artifact
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError
from plumline.schema import HISTORIES, conform
from plumline.tables import write_parquet

FIRST, SECOND = date(2011, 10, 31), date(2011, 11, 1)
Histories = dict[str, list[tuple[str, int]]]


def write_day(folder: Path, histories: Histories, profiles: dict[str, str | None]) -> tuple[Path, Path]:
    """A histories and a catalog artifact, as far as they are read here."""
    users = sorted(histories)
    lengths = [len(histories[user]) for user in users]
    table = pa.table(
        {
            "price": [[0.1, *[None] * (n - 2), 2.5] if n > 1 else None for n in lengths],
            "user_id": pa.array(users, pa.string()),
            "item_ids": [[item for item, _ in histories[user]] for user in users],
            "timestamps": [[at for _, at in histories[user]] for user in users],
            "rewards": [[1.0] * len(histories[user]) for user in users],
        }
    )
    with artifact.writing(folder / "histories", stage="histories", key="h") as scratch:
        write_parquet(scratch / "histories.parquet", conform(table, HISTORIES))
    with artifact.writing(folder / "catalog", stage="catalog", key="c") as scratch:
        write_parquet(scratch / "items.parquet", pa.table({"item_id": pa.array([], pa.string())}))
        known = sorted(profiles)
        columns = {"user_id": pa.array(known, pa.string()), "country": [profiles[user] for user in known]}
        write_parquet(scratch / "users.parquet", pa.table(columns))
    return folder / "histories", folder / "catalog"


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two days of three users; on the second, u2 is gone."""
    root = tmp_path_factory.mktemp("days")
    long = [(f"i{number}", 1_320_000_000_000 + number) for number in range(205)]
    first = write_day(
        root / "first", {"u1": [("a", 1_320_000_000_123)], "u2": [("b", 5)], "long": long}, {"u1": "France", "p": None}
    )
    second = write_day(root / "second", {"u1": [("a", 1_320_000_000_123), ("c", 1_320_100_000_456)]}, {"u1": "France"})
    return {FIRST: first, SECOND: second}


@pytest.fixture(scope="module")
def pushed(days: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where the first day is online; copy it to change it."""
    home = tmp_path_factory.mktemp("pushed")
    push_histories(*days[FIRST], FIRST, home)
    return home


@pytest.fixture
def home(pushed: Path, tmp_path: Path) -> Path:
    shutil.copytree(pushed, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def features(home: Path) -> Iterator[OnlineFeatures]:
    opened = OnlineFeatures.open(home)
    yield opened
    opened.close()


def read(features: OnlineFeatures, user_id: str) -> OnlineUser:
    return features.read(user_id, timeout_s=10.0)


def test_what_was_pushed_is_read(features: OnlineFeatures, home: Path) -> None:
    user = read(features, "u1")
    version = read_version(home)
    assert version is not None
    assert (version.as_of, version.complete, version.num_users) == (FIRST, True, 4)
    assert user.history == (("a", 1_320_000_000_123),)
    assert user.profile == {"country": "France"}
    assert (user.found, user.degraded, user.version) == (True, False, version.version)
    assert user.event_ms == end_of_day_ms(FIRST) == 1_320_105_599_999


def test_unknown_users_are_no_failure(features: OnlineFeatures) -> None:
    assert read(features, "nobody") == OnlineUser()
    assert read(features, "p") == OnlineUser((), {}, end_of_day_ms(FIRST), read(features, "p").version, True)


def test_long_histories_keep_their_newest_events(features: OnlineFeatures) -> None:
    history = read(features, "long").history
    assert len(history) == 200
    assert history[-1] == ("i204", 1_320_000_000_204)


def test_numbers_of_the_history_come_along(features: OnlineFeatures, home: Path, days: Any) -> None:
    assert read(features, "u1").numbers == {}  # nobody knows any
    push_histories(*days[SECOND], SECOND, home)
    assert read(features, "u1").numbers == {"price": (pytest.approx(0.1), 2.5)}


def test_of_numbers_the_newest_are_kept_too(features: OnlineFeatures) -> None:
    """The history has 205 events, and 0.1 is that of the first."""
    assert read(features, "long").numbers == {"price": (*[None] * 199, 2.5)}


def push_as_before(folders: tuple[Path, Path], home: Path, patch: pytest.MonkeyPatch) -> None:
    """Push the first day as version 0.2 did, which knew no numbers."""
    from feast import FeatureService, FeatureView, Field
    from feast.types import Array, Int64, String

    from features.store import definitions

    kinds = {"item_ids": Array(String), "timestamps": Array(Int64), "version": String}
    view = FeatureView(
        name="user_history",
        entities=[definitions.user],
        ttl=definitions.user_history.ttl,
        source=definitions.user_history_push,
        schema=[Field(name=name, dtype=kind) for name, kind in kinds.items()],
    )
    with patch.context() as old:
        old.setattr(definitions, "user_history", view)
        service = FeatureService(name="online_user", features=[view, definitions.user_profile])
        old.setattr(definitions, "online_user", service)
        old.setattr(online, "_FORM", "older")
        rows = online._rows
        old.setattr(online, "_rows", lambda *about: rows(*about).drop(columns=["numbers"]))
        push_histories(*folders, FIRST, home)


def test_a_store_that_an_older_version_pushed_is_read(
    days: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a service that opened it before the first push of this version, which comes the same day."""
    home = tmp_path / "old"
    push_as_before(days[FIRST], home, monkeypatch)
    for name, folder in zip(("histories", "catalog"), days[FIRST], strict=True):
        shutil.copytree(folder, home / "artifacts" / name)
    assert PushedFeatures.find(home) is None  # what is online is not what these artifacts would give
    features = OnlineFeatures.open(home)
    user = read(features, "long")
    assert (user.found, len(user.history), user.numbers) == (True, 200, {})
    push_histories(*days[FIRST], FIRST, home)
    told = read(features, "long")
    assert (told.history, told.numbers) == (user.history, {"price": (*[None] * 199, 2.5)})
    pushed = PushedFeatures.find(home)
    assert pushed is not None
    assert pushed.read("long") == told
    features.close()


def test_the_next_day_replaces_the_day_before_while_readers_read(
    features: OnlineFeatures, home: Path, days: Any
) -> None:
    assert read(features, "u2").found
    push_histories(*days[SECOND], SECOND, home)
    assert [item for item, _ in read(features, "u1").history] == ["a", "c"]
    assert not read(features, "u2").found  # no longer in the histories: not read, although Feast still holds the row


def test_nothing_goes_backwards(home: Path, days: Any) -> None:
    second = push_histories(*days[SECOND], SECOND, home)
    assert push_histories(*days[FIRST], FIRST, home) == second
    features = OnlineFeatures.open(home)
    assert [item for item, _ in read(features, "u1").history] == ["a", "c"]
    features.close()


def test_the_artifacts_that_were_pushed_answer_as_the_store_does(home: Path, days: Any) -> None:
    """As long as they are the ones: another day's, half a push, or a flipped bit, and nobody answers in their name."""
    for name, folder in zip(("histories", "catalog"), days[FIRST], strict=True):
        shutil.copytree(folder, home / "artifacts" / name)
    store, pushed = OnlineFeatures.open(home), PushedFeatures.find(home)
    assert pushed is not None
    for user in ("u1", "u2", "long", "p", "nobody", ""):
        assert pushed.read(user) == read(store, user), user
    stale = [features.read("u1", timeout_s=10.0, not_before=SECOND) for features in (pushed, store)]
    assert stale[0] == stale[1]
    assert (stale[0].degraded, stale[0].reason) == (True, "stale")
    store.close()

    version = artifact.read_json(online_folder(home) / "version.json")
    artifact.write_json(online_folder(home) / "version.json", {**version, "complete": False})
    assert PushedFeatures.find(home) is None
    artifact.write_json(online_folder(home) / "version.json", version)
    victim = home / "artifacts" / "histories" / "histories.parquet"
    victim.write_bytes(victim.read_bytes()[:-1])
    assert PushedFeatures.find(home) is None
    shutil.rmtree(home / "artifacts" / "histories")
    assert PushedFeatures.find(home) is None
    shutil.copytree(days[SECOND][0], home / "artifacts" / "histories")
    assert PushedFeatures.find(home) is None


def test_nothing_pushed_is_said_whoever_is_asked(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="plumline daily"):
        PushedFeatures.find(tmp_path)


def test_the_same_day_is_pushed_once(home: Path, days: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert push_histories(*days[FIRST], FIRST, home) == read_version(home)
    assert "is online already" in capsys.readouterr().err


def test_a_push_in_a_process_of_its_own(days: Any, root: Path, tmp_path: Path) -> None:
    def run(histories: Path) -> subprocess.CompletedProcess[str]:
        folders = [str(histories), str(days[SECOND][1])]
        command = [sys.executable, "-m", "features.online", *folders, SECOND.isoformat(), str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run(days[SECOND][0]).returncode == 0
    version = read_version(tmp_path)
    assert version is not None
    assert (version.as_of, version.complete) == (SECOND, True)
    missing = run(tmp_path / "nothing")
    assert missing.returncode == MissingArtifactError.exit_code
    assert missing.stderr.splitlines()[-1].startswith(f"features: {tmp_path / 'nothing'}")


@pytest.mark.slow
@pytest.mark.fault
def test_killed_half_way_the_next_push_heals(home: Path, days: Any, root: Path) -> None:
    environment = {**os.environ, "PLUMLINE_CRASH_AT": "online:chunk", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "features.online", *map(str, days[SECOND]), SECOND.isoformat(), str(home)]
    assert subprocess.run(command, cwd=root, env=environment, check=False).returncode == -signal.SIGKILL
    half = read_version(home)
    assert half is not None
    assert (half.as_of, half.complete) == (SECOND, False)
    assert push_histories(*days[FIRST], FIRST, home) == half  # an older day does not get in between
    assert push_histories(*days[SECOND], SECOND, home).complete


def test_features_that_are_too_old_are_said_to_be(features: OnlineFeatures) -> None:
    assert not features.read("u1", 10.0, not_before=FIRST).degraded
    user = features.read("u1", 10.0, not_before=SECOND)
    assert (user.degraded, user.reason, user.history) == (True, "stale", ())
    assert not features.read("nobody", 10.0, not_before=SECOND).degraded


class HangingStore:
    """A store whose reads end when they are let go."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.gate = threading.Event()

    def get_feature_service(self, name: str) -> Any:
        return self._store.get_feature_service(name)

    def get_online_features(self, **asked: Any) -> Any:
        self.gate.wait(30.0)
        return self._store.get_online_features(**asked)


def test_a_store_that_hangs_costs_its_time_limit(features: OnlineFeatures, home: Path) -> None:
    store: Any = HangingStore(features._store)
    hanging = OnlineFeatures(store, home)
    for _ in range(3):
        began = time.perf_counter()
        assert hanging.read("u1", timeout_s=0.05) == OnlineUser(degraded=True, reason="timeout")
        assert time.perf_counter() - began < 1.0
    store.gate.set()
    assert read(hanging, "u1").found
    hanging.close()


def test_a_read_waits_a_twentieth_of_a_second(features: OnlineFeatures, home: Path) -> None:
    store: Any = HangingStore(features._store)
    hanging = OnlineFeatures(store, home)
    waited = []
    for _ in range(4):
        began = time.perf_counter()
        assert hanging.read("u1").reason == "timeout"
        waited.append(time.perf_counter() - began)
    store.gate.set()
    hanging.close()
    assert 0.04 < min(waited) < 0.3


class FailingStore(HangingStore):
    """A store that is down."""

    def get_online_features(self, **asked: Any) -> Any:
        raise ConnectionError("refused")


def test_a_store_that_fails_is_said(features: OnlineFeatures, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store: Any = FailingStore(features._store)
    broken = OnlineFeatures(store, home)
    assert read(broken, "u1") == OnlineUser(degraded=True, reason="error")
    assert "ConnectionError: refused" in capsys.readouterr().err
    broken.close()


def test_nothing_was_pushed(tmp_path: Path) -> None:
    assert read_version(tmp_path) is None
    with pytest.raises(MissingArtifactError, match="no online features"):
        OnlineFeatures.open(tmp_path)


def test_a_damaged_version_is_named(home: Path, days: Any) -> None:
    (online_folder(home) / "version.json").write_text('{"version": "x"}')
    with pytest.raises(CorruptArtifactError, match=r"version\.json"):
        push_histories(*days[SECOND], SECOND, home)


def test_another_feature_store_by_setting(home: Path, days: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = home / "other.yaml"
    other.write_text("project: x\nonline_store: {type: sqlite, colour: red}\n")
    monkeypatch.setenv("PLUMLINE_FEATURE_STORE", str(other))
    with pytest.raises(InputError, match=r"other\.yaml"):
        push_histories(*days[SECOND], SECOND, home)


def test_the_store_folder_holds_nothing_else(root: Path) -> None:
    """`feast apply` imports every module below it."""
    found = {path.name for path in (root / "features" / "store").iterdir() if path.name != "__pycache__"}
    assert found == {"definitions.py", "feature_store.yaml"}
