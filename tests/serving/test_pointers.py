"""Promote and rollback: what moves, what refuses, and that nothing half-moved can be read."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumline.errors import CorruptArtifactError, InputError, MixedReleaseError, RefusedError
from serving import pointers
from serving.pointers import (
    CANDIDATE,
    add_tombstones,
    fencing,
    pointer_path,
    promote,
    read_pointer,
    read_tombstones,
    rollback,
    sealed_folder,
    tombstones_path,
)


def test_promote_then_roll_back(releases: Path, ids: tuple[str, str]) -> None:
    a, b = ids
    assert read_pointer(releases) is None
    assert fencing(releases) == 0
    promote(releases, a, expected=0)
    pointer = promote(releases, b, expected=1)
    assert (pointer.release_id, pointer.previous, pointer.fencing) == (b, a, 2)
    assert json.loads(pointer_path(releases).read_text())["previous"] == a
    pointer = rollback(releases)
    assert (pointer.release_id, pointer.previous, pointer.fencing) == (a, None, 3)
    assert read_pointer(releases) == pointer


def test_rollback_twice_goes_back_further(releases: Path, ids: tuple[str, str]) -> None:
    a, b = ids
    for number, release_id in enumerate([a, b, a, b]):
        promote(releases, release_id, expected=number)
    assert [rollback(releases).release_id for _ in range(3)] == [a, b, a]
    with pytest.raises(RefusedError, match="nothing to roll back to"):
        rollback(releases)
    assert fencing(releases) == 7


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["a", "b", "rollback"]), max_size=8))
def test_any_walk_is_a_stack(releases: Path, ids: tuple[str, str], steps: list[str]) -> None:
    shutil.rmtree(releases / "pointers", ignore_errors=True)
    stack: list[str] = []
    for step in steps:
        before = fencing(releases)
        if step == "rollback":
            if len(stack) < 2:
                with pytest.raises(RefusedError):
                    rollback(releases)
                assert fencing(releases) == before
                continue
            stack.pop()
            rollback(releases)
        else:
            wanted = ids[0] if step == "a" else ids[1]
            promote(releases, wanted, expected=before)
            if not stack or stack[-1] != wanted:
                stack.append(wanted)
        pointer = read_pointer(releases)
        assert pointer is not None
        assert [*pointer.history, pointer.release_id] == stack


def test_stale_fencing_is_refused(releases: Path, ids: tuple[str, str]) -> None:
    a, b = ids
    promote(releases, a, expected=0)
    with pytest.raises(RefusedError, match="based on number 0, it is now 1"):
        promote(releases, b, expected=0)
    assert read_pointer(releases).release_id == a  # type: ignore[union-attr]


def test_promoting_the_champion_again_changes_nothing(releases: Path, ids: tuple[str, str]) -> None:
    first = promote(releases, ids[0], expected=0)
    assert promote(releases, ids[0], expected=0) == first


def test_pointers_are_apart(releases: Path, ids: tuple[str, str]) -> None:
    promote(releases, ids[0], expected=0, name=CANDIDATE)
    assert read_pointer(releases) is None
    assert read_pointer(releases, CANDIDATE).release_id == ids[0]  # type: ignore[union-attr]


def test_what_stands_in_a_pointer_file(releases: Path, ids: tuple[str, str]) -> None:
    a, b = ids
    promote(releases, a, expected=0)
    promote(releases, b, expected=1)
    text = (
        f'{{\n  "action": "promote",\n  "fencing": 2,\n  "history": [\n    "{a}"\n  ],\n'
        f'  "previous": "{a}",\n  "release_id": "{b}"\n}}\n'
    )
    assert pointer_path(releases).read_text() == text
    pointer = rollback(releases)
    assert (pointer.action, read_pointer(releases)) == ("rollback", pointer)
    assert {path.name for path in (releases / "pointers").iterdir()} == {"champion.json", ".lock"}
    assert tombstones_path(releases) == releases / "tombstones.json"
    add_tombstones(releases, ["y", "x"])
    assert tombstones_path(releases).read_text() == '{"item_ids": ["x", "y"]}\n'


def test_a_pointer_of_another_name_has_numbers_of_its_own(releases: Path, ids: tuple[str, str]) -> None:
    promote(releases, ids[0], expected=0)
    promote(releases, ids[1], expected=1)
    assert fencing(releases, CANDIDATE) == 0
    promote(releases, ids[0], expected=0, name=CANDIDATE)
    promote(releases, ids[1], expected=1, name=CANDIDATE)
    with pytest.raises(RefusedError, match=rf"candidate moved meanwhile: .* number 0, it is now 2 \({ids[1]}\)"):
        promote(releases, ids[0], expected=0, name=CANDIDATE)
    assert rollback(releases, CANDIDATE).release_id == ids[0]
    assert (fencing(releases), fencing(releases, CANDIDATE)) == (2, 3)
    with pytest.raises(RefusedError, match="nothing to roll back to"):
        rollback(releases, CANDIDATE)


def test_refusals_say_what_there_is(releases: Path, ids: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"this promotion was based on number 3, it is now 0 \(none\)"):
        promote(releases, ids[0], expected=3)
    with pytest.raises(RefusedError, match=r"no release 'r1' in .*/sealed; there are \[\]$"):
        promote(tmp_path / "empty", "r1", expected=0)
    (releases / "sealed" / ".scratch").mkdir()
    with pytest.raises(RefusedError) as error:
        promote(releases, "r1", expected=0)
    assert str(error.value).endswith(f"there are {sorted(ids)}")
    (sealed_folder(releases, ids[0]) / "release.json").unlink()
    with pytest.raises(CorruptArtifactError, match=r"release\.json"):
        promote(releases, ids[0], expected=0)
    promote(releases, ids[1], expected=0)
    about = {"release_id": ids[1], "fencing": 2, "history": [ids[0]], "action": "promote"}
    pointer_path(releases).write_text(json.dumps(about))
    with pytest.raises(RefusedError, match=f"cannot roll back to {ids[0]}, {ids[1]} stays: "):
        rollback(releases)


def test_missing_damaged_or_renamed_releases_are_not_promoted(releases: Path, ids: tuple[str, str]) -> None:
    a, b = ids
    promote(releases, a, expected=0)
    with pytest.raises(RefusedError, match=r"no release 'nothing'.*" + a):
        promote(releases, "nothing", expected=1)
    with pytest.raises(InputError):
        promote(releases, "../sealed", expected=1)
    shutil.copytree(sealed_folder(releases, b), sealed_folder(releases, "renamed"))
    with pytest.raises(MixedReleaseError, match=b):
        promote(releases, "renamed", expected=1)
    weights = sealed_folder(releases, b) / "sft" / "weights" / "model.safetensors"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    with pytest.raises(CorruptArtifactError, match="safetensors"):
        promote(releases, b, expected=1)
    assert read_pointer(releases).release_id == a  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["gone", "zeros"])
def test_rollback_to_what_is_not_there_keeps_the_champion(releases: Path, ids: tuple[str, str], damage: str) -> None:
    a, b = ids
    promote(releases, a, expected=0)
    champion = promote(releases, b, expected=1)
    if damage == "gone":
        shutil.rmtree(sealed_folder(releases, a))
    else:
        (sealed_folder(releases, a) / "release.json").write_bytes(b"\0")
    with pytest.raises(RefusedError):
        rollback(releases)
    assert read_pointer(releases) == champion


def test_a_damaged_pointer_is_named(releases: Path) -> None:
    pointer_path(releases).parent.mkdir(parents=True)
    for text in ("", "{", "[]", '{"release_id": "x"}'):
        pointer_path(releases).write_text(text)
        with pytest.raises(CorruptArtifactError, match=r"champion\.json"):
            read_pointer(releases)


def test_tombstones_only_grow_and_survive_a_rollback(releases: Path, ids: tuple[str, str]) -> None:
    assert read_tombstones(releases) == frozenset()
    promote(releases, ids[0], expected=0)
    promote(releases, ids[1], expected=1)
    add_tombstones(releases, ["x", "y"])
    add_tombstones(releases, ["y", "z"])
    rollback(releases)
    assert read_tombstones(releases) == {"x", "y", "z"}


def test_damaged_tombstones_are_no_empty_list(releases: Path) -> None:
    for text in ("", "{}", "[]", '{"item_ids": 3}'):
        tombstones_path(releases).write_text(text)
        with pytest.raises(CorruptArtifactError, match="tombstones"):
            read_tombstones(releases)


def test_a_rollback_remembers_a_hundred_releases(releases: Path, ids: tuple[str, str]) -> None:
    promote(releases, ids[0], expected=0)
    history = [f"r{number}" for number in range(100)]
    about = {"release_id": ids[0], "fencing": 101, "history": history, "action": "promote"}
    pointer_path(releases).write_text(json.dumps(about))
    assert promote(releases, ids[1], expected=101).history == (*history[1:], ids[0])


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("held", "moved"), [(9.5, True), (10.5, False)])
def test_a_writer_waits_ten_seconds_for_its_turn(
    releases: Path, ids: tuple[str, str], monkeypatch: pytest.MonkeyPatch, held: float, moved: bool
) -> None:
    (releases / "pointers").mkdir(exist_ok=True)
    with (releases / "pointers" / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        class Held(Clock):
            """The other writer lets go after some seconds."""

            def sleep(self, seconds: float) -> None:
                super().sleep(seconds)
                if self.now >= held:
                    fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(pointers, "time", Held())
        if moved:
            assert promote(releases, ids[0], expected=0).release_id == ids[0]
        else:
            with pytest.raises(RefusedError, match="holds the lock for 10 s"):
                promote(releases, ids[0], expected=0)
            assert read_pointer(releases) is None


def _promote_one(releases: str, release_id: str) -> str:
    try:
        promote(Path(releases), release_id, expected=0)
        return "moved"
    except RefusedError:
        return "refused"


def test_of_two_at_once_one_wins(releases: Path, ids: tuple[str, str]) -> None:
    with get_context("spawn").Pool(2) as pool:
        said = pool.starmap(_promote_one, [(str(releases), ids[0]), (str(releases), ids[1])])
    assert sorted(said) == ["moved", "refused"]
    assert fencing(releases) == 1


@pytest.mark.parametrize("point", ["verified", "moved"])
def test_killed_while_promoting(releases: Path, ids: tuple[str, str], root: Path, point: str) -> None:
    promote(releases, ids[0], expected=0)
    code = (
        "import sys; from pathlib import Path; from serving.pointers import promote;"
        "promote(Path(sys.argv[1]), sys.argv[2], expected=1)"
    )
    environment = {**os.environ, "PLUMLINE_CRASH_AT": f"promote:{point}", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(releases), ids[1]]
    done = subprocess.run(command, cwd=root, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    now = read_pointer(releases)
    assert now is not None
    assert now.release_id == ids[0 if point == "verified" else 1]
    assert promote(releases, ids[1], expected=1).release_id == ids[1]  # the rerun finishes or is a no-op
    assert fencing(releases) == 2
