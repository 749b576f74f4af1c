"""What must never load: mixtures, damage, code."""

import itertools
import shutil
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumline import artifact
from plumline.errors import (
    ArtifactError,
    CorruptArtifactError,
    InputError,
    MissingArtifactError,
    MixedReleaseError,
    RefusedError,
)
from serving.release import COMPONENTS, Release, check_release_id

MIXED = ("sft", "vocabulary", "quantizer", "sids", "index")
MIXTURES = [
    {part for part, of_b in zip(MIXED, chosen, strict=True) if of_b}
    for chosen in itertools.product([False, True], repeat=len(MIXED))
    if any(chosen) and not all(chosen)
]


def reseal(folder: Path) -> None:
    """Write a fresh top manifest, as an attacker or a careless repair would."""
    about = asdict(artifact.read_manifest(folder))
    del about["files"]
    (folder / "manifest.json").unlink()
    artifact.seal(folder, **about)


def test_release_holds_each_component_with_its_manifest(dummies: Any) -> None:
    release = Release.load(dummies.release_a)
    assert sorted(path.name for path in dummies.release_a.iterdir()) == sorted(
        [*COMPONENTS, "manifest.json", "release.json"]
    )
    for name in set(COMPONENTS) - {"embeddings"}:
        own = (dummies.parts_a / name / "manifest.json").read_bytes()
        assert (release.path(name) / "manifest.json").read_bytes() == own
        assert release.components[name] == artifact.verify(release.path(name)).digest
    assert not (dummies.release_a / "corpus").exists()
    encoders = sorted(p.relative_to(release.path("embeddings")).as_posix() for p in _files(release.path("embeddings")))
    assert encoders == ["encoder/title.json", "manifest.json"]
    assert release.release_id.startswith("2011-10-31-")
    assert release.lineage == {name: release.components[name] for name in ("quantizer", "cpt")}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_same_parts_give_same_bytes(dummies: Any, workshop: Any, tmp_path: Path) -> None:
    again = workshop.seal_release(workshop.parts_of(dummies.parts_a), tmp_path / "again")
    assert artifact.read_manifest(again).files == artifact.read_manifest(dummies.release_a).files


def test_release_id_names_content(dummies: Any) -> None:
    a, b = Release.load(dummies.release_a), Release.load(dummies.release_b)
    assert a.release_id != b.release_id
    assert a.as_of == b.as_of == date(2011, 10, 31)


@pytest.mark.parametrize("of_b", MIXTURES, ids=lambda chosen: "+".join(sorted(chosen)))
def test_every_mixture_of_two_runs_is_refused_when_sealing(
    dummies: Any, workshop: Any, tmp_path: Path, of_b: set[str]
) -> None:
    parts = {**workshop.parts_of(dummies.parts_a), **{name: dummies.parts_b / name for name in of_b}}
    with pytest.raises(MixedReleaseError, match="was made from"):
        workshop.seal_release(parts, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize("of_b", MIXTURES, ids=lambda chosen: "+".join(sorted(chosen)))
@pytest.mark.parametrize("resealed", [False, True])
def test_every_mixture_of_two_releases_is_refused_when_loading(
    dummies: Any, tmp_path: Path, of_b: set[str], resealed: bool
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(dummies.release_a, mixed)
    for name in of_b:
        shutil.rmtree(mixed / name)
        shutil.copytree(dummies.release_b / name, mixed / name)
    if resealed:  # even with release.json and the top manifest rewritten to fit
        about = artifact.read_json(mixed / "release.json")
        about["components"] |= {name: artifact.read_manifest(mixed / name).digest for name in of_b}
        artifact.write_json(mixed / "release.json", about)
        reseal(mixed)
    with pytest.raises(MixedReleaseError) as caught:
        Release.load(mixed)
    if not resealed:
        assert any(f"mixed/{name}: is {name}" in str(caught.value) for name in of_b)


def test_a_part_that_does_not_name_its_input_is_refused(dummies: Any, workshop: Any, tmp_path: Path) -> None:
    shutil.copytree(dummies.parts_a, tmp_path / "run")
    artifact_index = tmp_path / "run" / "index"
    manifest = artifact.read_json(artifact_index / "manifest.json")
    del manifest["parents"]["sids"]
    artifact.write_json(artifact_index / "manifest.json", manifest)
    with pytest.raises(MixedReleaseError, match="index: its manifest does not say which sids"):
        workshop.seal_release(workshop.parts_of(tmp_path / "run"), tmp_path / "out")


def test_a_part_of_another_day_is_refused(dummies: Any, workshop: Any, tmp_path: Path) -> None:
    shutil.copytree(dummies.parts_a, tmp_path / "run")
    manifest = artifact.read_json(tmp_path / "run" / "corpus" / "manifest.json")
    manifest["arguments"]["as_of"] = "2011-10-30"
    artifact.write_json(tmp_path / "run" / "corpus" / "manifest.json", manifest)
    with pytest.raises(MixedReleaseError, match="corpus is of 2011-10-30, the release of 2011-10-31"):
        workshop.seal_release(workshop.parts_of(tmp_path / "run"), tmp_path / "out")


def test_an_adopted_part_passes(dummies: Any, workshop: Any, tmp_path: Path) -> None:
    """A daily run adopts quantizer and cpt: other parents than at the bootstrap, the same digest, one lineage."""
    run = tmp_path / "next"
    for name in workshop.parts_of(run):

        def body(scratch: Path, name: str = name) -> None:
            if name in ("quantizer", "cpt"):
                artifact.copy_payload(dummies.release_a / name, scratch)
                return
            artifact.copy_payload(dummies.parts_a / name, scratch)
            artifact.write_json(scratch / "report.json", {"day": 2})

        workshop.write_part(run, name, body)
    release = Release.load(workshop.seal_release(workshop.parts_of(run), tmp_path / "release", as_of=date(2011, 11, 1)))
    base = Release.load(dummies.release_a)
    assert release.lineage == base.lineage
    assert release.release_id != base.release_id


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "code.py", "state.pkl"])
def test_code_and_pickles_are_refused(dummies: Any, workshop: Any, tmp_path: Path, name: str) -> None:
    parts = workshop.write_dummy_parts(tmp_path / "run", "a")
    shutil.rmtree(parts / "scores")
    workshop.write_part(parts, "scores", lambda scratch: (scratch / name).write_bytes(b"x"))
    with pytest.raises(RefusedError, match=name):
        workshop.seal_release(workshop.parts_of(parts), tmp_path / "out")


def test_remote_code_is_refused(dummies: Any, workshop: Any, tmp_path: Path) -> None:
    parts = workshop.write_dummy_parts(tmp_path / "run", "a")
    shutil.rmtree(parts / "scores")
    config = {"auto_map": {"AutoModel": "evil.Model"}}
    workshop.write_part(parts, "scores", lambda scratch: artifact.write_json(scratch / "config.json", config))
    with pytest.raises(RefusedError, match="auto_map"):
        workshop.seal_release(workshop.parts_of(parts), tmp_path / "out")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_refused(
    dummies: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = sorted(_files(dummies.release_a))
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, 8 * len(content) - 1))
    is_key_of_manifest = path == dummies.release_a / "manifest.json"
    content[position // 8] ^= 1 << (position % 8)
    broken = tmp_path_factory.mktemp("flipped") / "release"
    shutil.copytree(dummies.release_a, broken)
    (broken / path.relative_to(dummies.release_a)).write_bytes(content)
    if is_key_of_manifest and _same_files(broken, dummies.release_a):
        return  # a bit of what the top manifest says about itself (key, code …): the files are all vouched for
    with pytest.raises(ArtifactError):
        Release.load(broken)
    shutil.rmtree(broken.parent)


def _same_files(a: Path, b: Path) -> bool:
    try:
        return artifact.read_manifest(a).files == artifact.read_manifest(b).files
    except ArtifactError:
        return False


@pytest.mark.parametrize("name", ["sft/weights/model.safetensors", "index/manifest.json", "release.json"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "gone"])
def test_damage_is_named(dummies: Any, tmp_path: Path, name: str, damage: str) -> None:
    broken = tmp_path / "release"
    shutil.copytree(dummies.release_a, broken)
    content = (broken / name).read_bytes()
    if damage == "gone":
        (broken / name).unlink()
    else:
        (broken / name).write_bytes(content[:-7] if damage == "cut" else bytes(len(content)))
    with pytest.raises((CorruptArtifactError, MissingArtifactError), match=name.rsplit("/", 1)[0]):
        Release.load(broken)


def test_an_extra_file_is_refused(dummies: Any, tmp_path: Path) -> None:
    shutil.copytree(dummies.release_a, tmp_path / "release")
    (tmp_path / "release" / "sft" / "extra.json").write_text("{}")
    with pytest.raises(CorruptArtifactError, match=r"extra\.json"):
        Release.load(tmp_path / "release")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError):
        Release.load(tmp_path / "none")


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "A", ".hidden", "x" * 65, "a b", "ä", "a\x00"])
def test_release_ids_are_an_allow_list(bad: str) -> None:
    with pytest.raises(InputError):
        check_release_id(bad)
