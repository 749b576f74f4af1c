import os
import shutil
import subprocess
import sys

import pytest

from flows.steps.registry import Entry, Registry
from plumline import artifact
from plumline.errors import InputError


def seal_fake(home, release_id, content):
    """A sealed folder that the registry can carry; what a release is made of is serving's business."""
    folder = home / "releases" / "sealed" / release_id
    with artifact.writing(folder, stage="release", key=release_id) as scratch:
        artifact.write_json(scratch / "scores" / "scores.json", {"content": content})
        (scratch / "weights.bin").write_bytes(content.encode() * 1000)
    return folder


def entry(folder, as_of="2020-01-01", kind="bootstrap", base=""):
    digest = artifact.read_manifest(folder).digest
    return Entry(folder.name, digest, as_of, base, kind, key=f"key of {folder.name}")


def git(home, *arguments):
    command = ["git", "-C", str(home / "releases" / "registry"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.timeout(200)
def test_publish_is_idempotent_and_restore_brings_back_the_bytes(tmp_path):
    registry = Registry(tmp_path)
    assert registry.entries() == []
    first, second = seal_fake(tmp_path, "2020-01-01-aa", "a"), seal_fake(tmp_path, "2020-01-02-bb", "b")
    published = registry.publish(entry(first))
    assert published.tag == "release@v1.20200101.0"
    assert registry.publish(entry(first)) == published
    assert registry.publish(entry(second, "2020-01-02", "daily", first.name)).tag == "release@v1.20200102.0"
    assert [e.release_id for e in registry.entries()] == [first.name, second.name]
    assert len(git(tmp_path, "log", "--oneline").splitlines()) == 3
    reference = {p.name: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    shutil.rmtree(first)
    shutil.rmtree(tmp_path / "releases" / "registry" / ".dvc" / "cache")
    restored = registry.restore(first.name)
    assert {p.name: p.read_bytes() for p in restored.rglob("*") if p.is_file()} == reference
    with pytest.raises(InputError, match="2020-01-02-bb"):
        registry.find("2020-01-09-zz")


def test_the_same_parts_made_by_other_code_keep_their_seal(tmp_path):
    registry, made = Registry(tmp_path), []
    for code, parts in (("one", "a"), ("two", "a"), ("two", "b")):
        with artifact.writing(tmp_path / f"made-{len(made)}", stage="release", key=code) as scratch:
            artifact.write_json(scratch / "release.json", {"components": parts})
            artifact.write_json(scratch / "sft" / "manifest.json", {"code": code})
        made.append(tmp_path / f"made-{len(made)}")
    first = registry.seal(made[0], "2020-01-01-aa")
    kept = artifact.read_manifest(first).digest
    assert registry.seal(made[1], "2020-01-01-aa") == first
    assert artifact.read_manifest(first).digest == kept
    registry.seal(made[2], "2020-01-01-aa")
    assert artifact.read_manifest(first).digest != kept


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "A", "x" * 65])
def test_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(InputError):
        Registry(tmp_path).sealed(name)


PUBLISH = """
import sys
from pathlib import Path
from flows.steps.registry import Registry
sys.path.insert(0, sys.argv[2])
from test_registry import entry
home = Path(sys.argv[1])
print(Registry(home).publish(entry(home / "releases" / "sealed" / "2020-01-01-aa")).tag)
"""


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(300)
def test_a_publish_killed_anywhere_and_two_at_once_publish_once(tmp_path, root):
    seal_fake(tmp_path, "2020-01-01-aa", "a")
    command = [sys.executable, "-c", PUBLISH, str(tmp_path), str(root / "tests" / "flows" / "steps")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for seconds in (0.5, 2, 3.5, 5, 6.5, 8):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
    pair = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    tags = [process.communicate()[0].strip() for process in pair]
    assert tags == ["release@v1.20200101.0"] * 2
    assert len(Registry(tmp_path).entries()) == 1
    shutil.rmtree(tmp_path / "releases" / "sealed")
    assert Registry(tmp_path).restore("2020-01-01-aa").is_dir()
