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
