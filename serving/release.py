"""Stage `release`: everything one model needs to answer, sealed in one folder that cannot be mixed with another.

reads   catalog, embeddings, quantizer, sids, vocabulary, corpus, cpt, sft, index, memory, ranker, scores (of one run)
writes  one folder a component, each with its own manifest.json, and release.json:
        {"release_id", "as_of", "components": {name: digest}, "lineage": {"quantizer", "cpt"}, "made_from": {"corpus",
        "embeddings"}}
run     python -m serving.release --params recipes/cpu_tiny.yaml --catalog artifacts/catalog … --as-of 2011-10-31
        --out artifacts/release

A component is a copy of its artifact, but of `embeddings` only the fitted encoders come along (the vectors are today's,
the encoders are what tomorrow's items need), and `corpus` is checked and left behind. Adopted artifacts are no special
case: the stage that adopts writes a manifest of its own, so its parents are those of this run and its digest is the
base's.

What is checked, when it is sealed and again whenever it is loaded: every manifest names the very digests of its inputs
that lie beside it. Weights × tokenizer × quantizer × SID table × index of two releases never pass as one.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from plumline import artifact
from plumline.artifact import MANIFEST, Manifest
from plumline.errors import ArtifactError, CorruptArtifactError, InputError, MixedReleaseError, RefusedError
from plumline.stage import Params, main

RELEASE = "release.json"
COMPONENTS = (
    "catalog", "embeddings", "quantizer", "sids", "vocabulary", "cpt", "sft", "index", "memory", "ranker", "scores",
)  # fmt: skip
_LATER = frozenset({"memory", "ranker"})
"""Components that a release sealed by version 0.2 lacks: it answers with its beams as they are."""
LINEAGE = ("quantizer", "cpt")
"""Components that daily releases hand on unchanged: two releases of one lineage share their digests."""

EDGES: dict[str, tuple[str, ...]] = {
    "sids": ("quantizer",),
    "vocabulary": ("sids",),
    "corpus": ("sids", "vocabulary"),
    "cpt": ("corpus", "vocabulary"),
    "sft": ("corpus", "vocabulary", "cpt"),
    "index": ("catalog", "sids"),
    "memory": ("catalog",),
    "ranker": ("catalog", "sids", "vocabulary", "sft", "index", "memory"),
    "scores": ("sids", "vocabulary", "sft", "index", "ranker"),
}
"""Inputs that a manifest has to name. Those it names beyond these are checked as well."""

_ALLOWED_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_ALLOWED_SUFFIXES = frozenset({".json", ".parquet", ".safetensors", ".npz", ".npy", ".txt", ".jinja"})


class ReleaseParams(Params):
    """A release is made of what it is given; there is nothing to choose."""


def run(
    params: ReleaseParams,
    *,
    catalog: Path,
    embeddings: Path,
    quantizer: Path,
    sids: Path,
    vocabulary: Path,
    corpus: Path,
    cpt: Path,
    sft: Path,
    index: Path,
    memory: Path,
    ranker: Path,
    scores: Path,
    as_of: date,
    out: Path,
) -> None:
    """Check that the parts are of one run and copy them. Raises MixedReleaseError, RefusedError (code in a part)."""
    sources = {
        "catalog": catalog,
        "embeddings": embeddings,
        "quantizer": quantizer,
        "sids": sids,
        "vocabulary": vocabulary,
        "corpus": corpus,
        "cpt": cpt,
        "sft": sft,
        "index": index,
        "memory": memory,
        "ranker": ranker,
        "scores": scores,
    }
    manifests = {name: artifact.read_manifest(folder) for name, folder in sources.items()}
    made_from = {name: manifests[name].digest for name in ("corpus", "embeddings")}
    check_parents(manifests, {name: manifest.digest for name, manifest in manifests.items()})
    _check_day(manifests, as_of)

    for name in COMPONENTS:
        if name == "embeddings":
            _copy_encoders(embeddings, manifests[name], out / name)
        else:
            shutil.copytree(sources[name], out / name)
        refuse_code(out / name)
    components = {name: artifact.verify(out / name).digest for name in COMPONENTS}
    release_id = f"{as_of.isoformat()}-{artifact.sha256_json(components)[:8]}"
    artifact.write_json(
        out / RELEASE,
        {
            "release_id": release_id,
            "as_of": as_of.isoformat(),
            "components": components,
            "lineage": {name: components[name] for name in LINEAGE},
            "made_from": made_from,
        },
    )


def _copy_encoders(embeddings: Path, manifest: Manifest, goal: Path) -> None:
    """An artifact of `encoder/` alone, sealed with the facts of the artifact that it was taken from."""
    names = {name: name for name in manifest.files if name.startswith("encoder/")}
    if not names:
        raise ArtifactError(f"{embeddings}: no encoder/ in it; run the stage embeddings again")
    artifact.copy_payload(embeddings, goal, names)
    about: dict[str, Any] = {**asdict(manifest), "key": artifact.sha256_json({"encoder_of": manifest.digest})}
    del about["files"]
    artifact.seal(goal, **about)


def check_parents(manifests: Mapping[str, Manifest], digests: Mapping[str, str]) -> None:
    """Check that every part was made from the parts beside it.

    manifests: part → its manifest. digests: part → digest under which others know it. Raises MixedReleaseError naming
    the part, the input, and both digests.
    """
    for name, manifest in manifests.items():
        for parent in EDGES.get(name, ()):
            if parent in _LATER and parent not in manifests:
                continue
            if parent not in manifest.parents:
                raise MixedReleaseError(
                    f"{name}: its manifest does not say which {parent} it was made from; run the stage {name} again"
                )
        for parent, digest in manifest.parents.items():
            if parent in digests and digest != digests[parent]:
                raise MixedReleaseError(
                    f"{name} was made from {parent} {digest[:12]}, but the {parent} beside it is "
                    f"{digests[parent][:12]}; run the stages after {parent} again"
                )


def _check_day(manifests: Mapping[str, Manifest], as_of: date) -> None:
    for name, manifest in manifests.items():
        day = manifest.arguments.get("as_of", as_of.isoformat())
        if day != as_of.isoformat():
            raise MixedReleaseError(f"{name} is of {day}, the release of {as_of}; run the stage {name} for that day")


def refuse_code(folder: Path) -> None:
    """Raise RefusedError if a component holds anything that could run when it is opened: pickles, modules, auto_map."""
    for path in artifact.list_files(folder):
        if path.suffix not in _ALLOWED_SUFFIXES:
            raise RefusedError(
                f"{path}: a release holds no {path.suffix or 'unnamed'} files, only {sorted(_ALLOWED_SUFFIXES)}; "
                f"write weights as safetensors"
            )
        if path.name.endswith("config.json"):
            config = artifact.read_json(path)
            if isinstance(config, dict) and "auto_map" in config:
                raise RefusedError(f"{path}: asks for code of its own (auto_map); only built-in model classes are run")


def check_release_id(release_id: str) -> str:
    """The id itself if it is one: 1 to 64 of [a-z0-9._-], no leading dot. Raises InputError: it becomes a path."""
    if not 1 <= len(release_id) <= 64 or not set(release_id) <= _ALLOWED_CHARACTERS or release_id.startswith("."):
        raise InputError(f"release {release_id!r}: an id is 1 to 64 characters of a-z 0-9 . _ -; see plumline status")
    return release_id


@dataclass(frozen=True)
class Release:
    """A sealed release whose every byte was checked.

    folder: where it lies. release_id, as_of: from release.json. components: name → digest. lineage: the digests that
    all releases between two retrainings share.
    """

    folder: Path
    release_id: str
    as_of: date
    components: dict[str, str]
    lineage: dict[str, str]

    def has(self, component: str) -> bool:
        """Whether it was sealed with this component; older releases lack `memory` and `ranker`."""
        return component in self.components

    def path(self, component: str) -> Path:
        """Folder of one component."""
        assert component in COMPONENTS, component
        return self.folder / component

    @classmethod
    def load(cls, folder: Path) -> "Release":
        """Verify a release and describe it.

        Raises MissingArtifactError, MixedReleaseError naming the component that belongs to another release, or
        CorruptArtifactError naming the first file that is not the one that was sealed.
        """
        # 1. release.json itself, by the top manifest: everything after this step compares with it.
        top = _read_manifest(folder)
        about = _read_release(folder, top)
        # 2. Swapped components, before the top manifest would call the same thing a corruption.
        manifests = {name: _component(folder, name, digest) for name, digest in about["components"].items()}
        # 3. Every byte.
        artifact.verify(folder)
        # 4. The parts name each other: a mixture does not pass by being sealed anew.
        digests = {**about["components"], **about["made_from"]}
        check_parents(manifests, digests)
        for name in manifests:
            refuse_code(folder / name)
        return cls(
            folder=folder,
            release_id=check_release_id(about["release_id"]),
            as_of=date.fromisoformat(about["as_of"]),
            components=about["components"],
            lineage=about["lineage"],
        )


def _read_release(folder: Path, top: Manifest) -> dict[str, Any]:
    path = folder / RELEASE
    entry = top.files.get(RELEASE)
    if not path.is_file() or not isinstance(entry, dict) or entry.get("sha256") != artifact.sha256_file(path):
        raise CorruptArtifactError(f"{path}: not the file that was sealed; restore the release from the registry")
    about = artifact.read_json(path)
    if set(about["components"]) not in (set(COMPONENTS), set(COMPONENTS) - _LATER):
        raise CorruptArtifactError(f"{path}: holds {sorted(about['components'])}; this version reads {COMPONENTS}")
    return dict(about)


def _read_manifest(folder: Path) -> Manifest:
    """A manifest whose entries have the right shape, whatever bit of it was flipped."""
    manifest = artifact.read_manifest(folder)
    entries = manifest.files.values() if isinstance(manifest.files, dict) else [None]
    shaped = all(isinstance(entry, dict) and set(entry) == {"sha256", "size"} for entry in entries)
    if not shaped or not isinstance(manifest.parents, dict):
        raise CorruptArtifactError(f"{folder / MANIFEST}: damaged; restore the release from the registry")
    return manifest


def _component(folder: Path, name: str, digest: str) -> Manifest:
    """The manifest of a nested component. Raises MixedReleaseError if it is intact but another one than was sealed."""
    manifest = _read_manifest(folder / name)
    if manifest.digest != digest:
        artifact.verify(folder / name)  # a damaged one is named as damaged
        raise MixedReleaseError(
            f"{folder / name}: is {name} {manifest.digest[:12]} of another release, this release was sealed with "
            f"{digest[:12]}; restore the release from the registry"
        )
    return manifest


if __name__ == "__main__":
    main(run, section="release")
