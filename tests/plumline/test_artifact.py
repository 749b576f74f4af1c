import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plumline import artifact
from plumline.errors import CorruptArtifactError, MissingArtifactError


def make(out: Path, files: dict[str, bytes], key: str = "k") -> Path:
    with artifact.writing(out, stage="toy", key=key) as scratch:
        for name, content in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
    return out


def test_a_written_artifact_verifies_and_leaves_no_scratch(tmp_path):
    out = make(tmp_path / "a" / "toy", {"x.bin": b"12", "sub/y.bin": b"3"})
    manifest = artifact.verify(out)
    assert sorted(manifest.files) == ["sub/y.bin", "x.bin"]
    assert list((tmp_path / "a" / ".scratch").iterdir()) == []


def test_equal_content_has_equal_bytes_and_digest(tmp_path):
    a, b = make(tmp_path / "a", {"x": b"1"}), make(tmp_path / "b", {"x": b"1"})
    assert (a / "manifest.json").read_bytes() == (b / "manifest.json").read_bytes()
    assert artifact.read_manifest(a).digest != artifact.read_manifest(make(tmp_path / "c", {"x": b"2"})).digest


def test_an_exception_leaves_the_old_artifact_untouched(tmp_path):
    out = make(tmp_path / "toy", {"x": b"old"})
    with pytest.raises(RuntimeError), artifact.writing(out, stage="toy", key="k") as scratch:
        (scratch / "x").write_bytes(b"half")
        raise RuntimeError
    assert (out / "x").read_bytes() == b"old"
    assert list((tmp_path / ".scratch").iterdir()) == []


def test_a_second_write_replaces_the_first_whole(tmp_path):
    out = make(tmp_path / "toy", {"x": b"old", "only_old": b"1"})
    make(out, {"x": b"new"}, key="k2")
    assert artifact.verify(out).key == "k2"
    assert not (out / "only_old").exists()


@pytest.mark.parametrize("seed", range(200))
def test_every_mutation_is_refused_by_name(tmp_path, seed):
    content = bytes(random.Random(0).randbytes(4096))
    out = make(tmp_path / "toy", {"weights.bin": content, "b.json": b"{}"})
    chance = random.Random(seed)
    victim = out / "weights.bin"
    kind = ("flip", "truncate", "zero_tail", "missing", "extra")[seed % 5]
    if kind == "flip":
        position = chance.randrange(len(content))
        victim.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << chance.randrange(8))]) + content[position + 1 :]
        )
    elif kind == "truncate":
        victim.write_bytes(content[: chance.randrange(len(content))])
    elif kind == "zero_tail":
        cut = chance.randrange(len(content) - 64)
        victim.write_bytes(content[:cut] + bytes(len(content) - cut))
    elif kind == "missing":
        victim.unlink()
    else:
        victim = out / "stranger.bin"
        victim.write_bytes(b"!")
    with pytest.raises(CorruptArtifactError, match=victim.name):
        artifact.verify(out)


def test_a_symbolic_link_is_refused(tmp_path):
    out = make(tmp_path / "toy", {"x": b"1"})
    (out / "y").symlink_to("/etc/hostname")
    with pytest.raises(CorruptArtifactError, match="symbolic link"):
        artifact.verify(out)


def test_nothing_there_is_missing_not_corrupt(tmp_path):
    with pytest.raises(MissingArtifactError):
        artifact.verify(tmp_path / "toy")


def test_a_cut_manifest_is_refused_at_every_length(tmp_path):
    out = make(tmp_path / "toy", {"x": b"1"})
    text = (out / "manifest.json").read_bytes()
    for length in range(len(text) - 2):
        (out / "manifest.json").write_bytes(text[:length])
        with pytest.raises(CorruptArtifactError):
            artifact.verify(out)


def test_a_manifest_of_another_shape_is_refused(tmp_path):
    out = make(tmp_path / "toy", {"x": b"1"})
    good = artifact.read_json(out / "manifest.json")
    for broken in ({**good, "files": {"x": {"size": 1}}}, {**good, "files": ["x"]}, {"stage": "toy"}, []):
        artifact.write_json(out / "manifest.json", broken)
        with pytest.raises(CorruptArtifactError, match="manifest.json"):
            artifact.verify(out)


def test_fingerprint_sees_every_kind_of_input(tmp_path):
    assert artifact.fingerprint(tmp_path / "none") == "absent"
    folder = tmp_path / "folder"
    make(folder / "batch", {"x": b"1"})
    (folder / "plain.txt").write_text("a")
    before = artifact.fingerprint(folder)
    (folder / ".hidden").write_text("not counted")
    assert artifact.fingerprint(folder) == before
    (folder / "plain.txt").write_text("b")
    assert artifact.fingerprint(folder) != before


WRITER = """
import sys
from pathlib import Path
from plumline import artifact
with artifact.writing(Path(sys.argv[1]), stage="toy", key=sys.argv[2]) as scratch:
    (scratch / "x").write_bytes(sys.argv[2].encode() * 100)
"""


@pytest.mark.parametrize("point", ["body", "written", "sealed", "published"])
def test_killed_at_any_point_the_old_or_the_new_artifact_stands(tmp_path, root, point):
    out = make(tmp_path / "toy", {"x": b"old"}, key="old")
    command = [sys.executable, "-c", WRITER, str(out), "new"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run(command, env={**environment, "PLUMLINE_CRASH_AT": f"toy:{point}"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert artifact.verify(out).key == ("new" if point == "published" else "old")
    subprocess.run(command, env=environment, check=True)
    reference = make(tmp_path / "reference", {"x": b"new" * 100}, key="new")
    assert (out / "manifest.json").read_bytes() == (reference / "manifest.json").read_bytes()
    assert list((tmp_path / ".scratch").iterdir()) == []


def test_replace_file_is_whole_or_absent(tmp_path):
    artifact.replace_file(tmp_path / "p.json", "one")
    artifact.replace_file(tmp_path / "p.json", "two")
    assert (tmp_path / "p.json").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


# --- what is on the disk, byte for byte ---


def test_a_manifest_and_its_digest_letter_for_letter(tmp_path):
    about = {"parents": {"a": "d1"}, "params": {"é": 1.5}, "arguments": {"seed": 7}, "code": "c", "git_sha": "g"}
    with artifact.writing(tmp_path / "toy", stage="toy", key="k", **about) as scratch:
        (scratch / "x").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "toy" / "manifest.json").read_text() == (
        '{\n  "arguments": {\n    "seed": 7\n  },\n  "code": "c",\n  "files": {\n    "x": {\n'
        f'      "sha256": "{sha256}",\n      "size": 3\n    }}\n  }},\n'
        '  "git_sha": "g",\n  "key": "k",\n  "params": {\n    "é": 1.5\n  },\n'
        '  "parents": {\n    "a": "d1"\n  },\n  "stage": "toy"\n}\n'
    )
    manifest = artifact.verify(tmp_path / "toy")
    assert (manifest.parents, manifest.params, manifest.arguments) == ({"a": "d1"}, {"é": 1.5}, {"seed": 7})
    assert (manifest.code, manifest.git_sha) == ("c", "g")
    said = '{"files":{"x":{"sha256":"' + sha256 + '","size":3}},"stage":"toy"}'
    assert manifest.digest == hashlib.sha256(said.encode()).hexdigest()
    bare = artifact.Manifest("toy", "k", {})
    assert (bare.parents, bare.params, bare.arguments, bare.code, bare.git_sha) == ({}, {}, {}, "", "")


def test_canonical_json_has_one_spelling_and_no_nan(tmp_path):
    assert artifact.canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    for write in (artifact.canonical_json, lambda value: artifact.write_json(tmp_path / "x.json", value)):
        with pytest.raises(ValueError, match="Out of range"):
            write(float("nan"))


def test_json_that_is_none_is_told_from_json_that_is_not_there(tmp_path):
    path = tmp_path / "deep" / "down" / "x.json"
    artifact.write_json(path, ["é"])
    assert path.read_bytes() == '[\n  "é"\n]\n'.encode()
    assert artifact.read_json(path) == ["é"]
    with pytest.raises(MissingArtifactError, match=r"y\.json: no such file; run the stage that writes it"):
        artifact.read_json(tmp_path / "y.json")
    for content in (b"{", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=r"x\.json: not JSON \(.*; delete it and run the stage again"):
            artifact.read_json(path)


def test_a_file_is_replaced_below_folders_that_are_not_there_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "down" / "p.json"
    artifact.replace_file(path, "é")
    assert path.read_bytes() == "é".encode()
    synced = []
    monkeypatch.setattr(artifact, "fsync_path", synced.append)
    artifact.replace_file(path, "two")
    assert [at.parent for at in synced] == [path.parent, path.parent.parent]
    assert synced[0].name.startswith(f".p.json.{os.getpid()}.")
    assert synced[1] == path.parent

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(artifact, "fsync_path", full)
    with pytest.raises(OSError, match="no space left"):
        artifact.replace_file(path, "three")
    assert [at.name for at in path.parent.iterdir()] == ["p.json"]
    assert path.read_text() == "two"


def test_everything_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(artifact, "fsync_path", lambda path: done.append(path.name))
    monkeypatch.setattr(artifact, "crash_point", lambda stage, point: done.append(f"{stage}:{point}"))
    with artifact.writing(tmp_path / "toy", stage="toy", key="k") as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "y").write_bytes(b"2")
        (scratch / "x").write_bytes(b"1")
        name = scratch.name
    steps = ["toy:body", "y", "x", "toy:written", "manifest.json", "sub", name, "toy:sealed"]
    assert done == [*steps, tmp_path.name, "toy:published"]


def test_where_folders_cannot_change_places_the_old_one_goes_aside(tmp_path, monkeypatch):
    out = make(tmp_path / "toy", {"x": b"old", "only_old": b"1"})
    monkeypatch.setattr(artifact, "_exchange", lambda a, b: False)
    make(out, {"x": b"new"}, key="k2")
    assert artifact.verify(out).key == "k2"
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "x"]
    assert list((tmp_path / ".scratch").iterdir()) == []


def test_folders_change_places_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not artifact._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("not on this file system")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert not artifact._exchange(tmp_path / "a", tmp_path / "nothing")


@pytest.mark.parametrize(("answer", "done"), [(0, True), (-1, False)])
def test_what_the_kernel_is_asked_to_exchange(monkeypatch, answer, done):
    """Two names, each relative to the working folder (AT_FDCWD, -100), and RENAME_EXCHANGE (2)."""
    asked = []

    class Library:
        def __init__(self, name, use_errno):
            pass

        def renameat2(self, *arguments):
            asked.append(arguments)
            return answer

    with monkeypatch.context() as patch:
        patch.setattr(artifact.ctypes, "CDLL", Library)
        assert artifact._exchange(Path("a/é"), Path("b")) is done
    assert asked == [(-100, "a/é".encode(), -100, b"b", 2)]


def test_a_kernel_without_an_exchange_is_no_failure(monkeypatch):
    class Library:
        def __init__(self, name, use_errno):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(artifact.ctypes, "CDLL", Library)
        assert not artifact._exchange(Path("a"), Path("b"))


def test_only_what_the_dead_left_behind_is_swept(tmp_path):
    scratch = tmp_path / ".scratch"
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = [f"toy-{os.getpid()}-00aa", "notes", "toy-x-00aa", f"a-b-c-{os.getpid()}-0"]
    gone = [f"toy-{dead.pid}-00aa", f"a-b-c-{dead.pid}-0"]
    for name in (*kept, *gone):
        (scratch / name).mkdir(parents=True)
    no_folder = scratch / f"file-{dead.pid}-0"  # what cannot be removed stops nobody
    no_folder.touch()
    make(tmp_path / "toy", {"x": b"1"})
    assert sorted(path.name for path in scratch.iterdir()) == sorted([*kept, no_folder.name])


def test_each_kind_of_damage_has_its_words(tmp_path):
    out = make(tmp_path / "toy", {"x": b"12", "sub/manifest.json": b"{}"})
    hint = "; delete the folder and run its stage again, or restore it from the registry"

    def said():
        with pytest.raises(CorruptArtifactError) as error:
            artifact.verify(out)
        return str(error.value).removeprefix(f"{out}/")

    assert sorted(artifact.verify(out).files) == ["sub/manifest.json", "x"]  # the top manifest alone is none of them
    (out / "x").write_bytes(b"1")
    assert said() == f"x: 1 bytes where the manifest says 2{hint}"
    (out / "x").write_bytes(b"13")
    assert said() == f"x: content differs from the manifest's sha256{hint}"
    (out / "x").unlink()
    assert said() == f"x: named in the manifest but missing{hint}"
    (out / "x").write_bytes(b"12")
    (out / "stranger").touch()
    assert said() == f"stranger: not named in the manifest{hint}"
    (out / "stranger").unlink()
    (out / "link").symlink_to(out / "x")
    assert said() == "link: symbolic link inside an artifact; artifacts hold plain files only"
    with pytest.raises(MissingArtifactError, match="none: no finished artifact there; run the stage that writes it"):
        artifact.read_manifest(tmp_path / "none")
    artifact.write_json(out / "manifest.json", {"stage": "toy", "key": "k", "files": {"x": {"size": 1}}})
    assert said() == "manifest.json: not a manifest of this version (a file without sha256 and size)"


def test_fingerprints_are_digests_hashes_and_names(tmp_path):
    sealed = make(tmp_path / "in" / "sealed", {"x": b"1"})
    (tmp_path / "in" / "plain").write_bytes(b"abc")
    (tmp_path / "in" / ".hidden").write_bytes(b"?")
    plain = artifact.sha256_file(tmp_path / "in" / "plain")
    assert artifact.fingerprint(tmp_path / "in" / "plain") == plain
    assert artifact.fingerprint(sealed) == artifact.read_manifest(sealed).digest
    both = {"plain": plain, "sealed": artifact.read_manifest(sealed).digest}
    assert artifact.fingerprint(tmp_path / "in") == artifact.sha256_json(both)


def test_a_payload_is_copied_without_its_manifest_whole_or_by_name(tmp_path):
    source = make(tmp_path / "source", {"x": b"1", "sub/y": b"2"})
    artifact.copy_payload(source, tmp_path / "all")
    assert sorted(p.relative_to(tmp_path / "all").as_posix() for p in artifact.list_files(tmp_path / "all")) == [
        "sub/y",
        "x",
    ]
    assert not (tmp_path / "all" / "manifest.json").exists()
    artifact.copy_payload(source, tmp_path / "some", {"sub/y": "deep/z"})
    assert [p.relative_to(tmp_path / "some").as_posix() for p in artifact.list_files(tmp_path / "some")] == ["deep/z"]
    assert (tmp_path / "some" / "deep" / "z").read_bytes() == b"2"
