"""Small releases: of dummy bytes (what matters is who names whom), and of a real, tiny, random model."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from plumline import artifact
from serving.release import ReleaseParams, run

AS_OF = date(2011, 10, 31)
INPUTS = {
    "catalog": (),
    "embeddings": ("catalog",),
    "quantizer": ("embeddings",),
    "sids": ("embeddings", "quantizer"),
    "vocabulary": ("catalog", "sids"),
    "corpus": ("catalog", "sids", "vocabulary"),
    "cpt": ("corpus", "vocabulary"),
    "sft": ("corpus", "vocabulary", "cpt"),
    "index": ("catalog", "sids"),
    "memory": ("catalog",),
    "ranker": ("catalog", "sids", "vocabulary", "sft", "index", "memory"),
    "scores": ("catalog", "sids", "vocabulary", "sft", "index", "ranker"),
}
"""Part → the parts it is made from, in an order in which they can be made."""


def write_part(folder: Path, name: str, body: Callable[[Path], None], **about: Any) -> None:
    """One artifact of a run, with the parents that its stage would have recorded."""
    parents = {parent: artifact.read_manifest(folder / parent).digest for parent in INPUTS[name]}
    about = {"key": f"{folder.name} {name}", "parents": parents, **about}
    with artifact.writing(folder / name, stage=name, **about) as scratch:
        body(scratch)


def write_dummy_parts(folder: Path, mark: str) -> Path:
    """All artifacts of a run, a few bytes each; runs of different marks share no digest."""
    for name in INPUTS:

        def body(scratch: Path, name: str = name) -> None:
            artifact.write_json(scratch / "report.json", {"part": name, "mark": mark})
            if name == "embeddings":
                artifact.write_json(scratch / "encoder" / "title.json", {"mark": mark})
            if name in ("cpt", "sft"):
                (scratch / "weights").mkdir()
                (scratch / "weights" / "model.safetensors").write_bytes(f"{name} {mark}".encode() * 100)
                artifact.write_json(scratch / "weights" / "config.json", {"mark": mark})

        write_part(folder, name, body)
    return folder


def seal_release(parts: dict[str, Path], out: Path, as_of: date = AS_OF) -> Path:
    """Run the stage as its command line would: scratch, seal, publish."""
    with artifact.writing(out, stage="release", key=f"release of {out.name}") as scratch:
        run(ReleaseParams(), **parts, as_of=as_of, out=scratch)
    return out


def seal_without_ranker(release: Path, out: Path) -> Path:
    """The same release as version 0.2 would have sealed it: no memory, no ranker, and scores that name neither."""
    later = ("memory", "ranker")
    about = artifact.read_json(release / "release.json")
    with artifact.writing(out, stage="release", key=f"release of {out.name}") as scratch:
        for name in about["components"].keys() - set(later):
            shutil.copytree(release / name, scratch / name)
        manifest = artifact.read_json(scratch / "scores" / "manifest.json")
        manifest["parents"] = {name: digest for name, digest in manifest["parents"].items() if name not in later}
        artifact.write_json(scratch / "scores" / "manifest.json", manifest)
        components = {name: artifact.verify(scratch / name).digest for name in about["components"] if name not in later}
        release_id = f"{about['as_of']}-{artifact.sha256_json(components)[:8]}"
        artifact.write_json(scratch / "release.json", about | {"components": components, "release_id": release_id})
    return out


def parts_of(folder: Path) -> dict[str, Path]:
    """Part → its artifact."""
    return {name: folder / name for name in INPUTS}


@dataclass(frozen=True)
class Dummies:
    """Two runs of dummy bytes and their sealed releases."""

    parts_a: Path
    parts_b: Path
    release_a: Path
    release_b: Path


class Workshop:
    """The functions above, for tests (a test file cannot import its conftest)."""

    as_of = AS_OF
    write_part = staticmethod(write_part)
    write_dummy_parts = staticmethod(write_dummy_parts)
    seal_release = staticmethod(seal_release)
    seal_without_ranker = staticmethod(seal_without_ranker)
    parts_of = staticmethod(parts_of)


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    """How parts and releases are made."""
    return Workshop()


@pytest.fixture(scope="session")
def dummies(tmp_path_factory: pytest.TempPathFactory) -> Dummies:
    """Read only; copy what you mean to damage."""
    root = tmp_path_factory.mktemp("dummies")
    a, b = write_dummy_parts(root / "run_a", "a"), write_dummy_parts(root / "run_b", "b")
    return Dummies(a, b, seal_release(parts_of(a), root / "release_a"), seal_release(parts_of(b), root / "release_b"))


@pytest.fixture
def releases(tmp_path: Path, dummies: Dummies) -> Path:
    """A releases/ folder with the two dummies sealed in it, nothing promoted."""
    root = tmp_path / "releases"
    for folder in (dummies.release_a, dummies.release_b):
        release_id = artifact.read_json(folder / "release.json")["release_id"]
        shutil.copytree(folder, root / "sealed" / release_id)
    return root


@pytest.fixture
def ids(dummies: Dummies) -> tuple[str, str]:
    """Release ids of the two dummies."""
    a, b = (artifact.read_json(f / "release.json")["release_id"] for f in (dummies.release_a, dummies.release_b))
    return a, b


def write_histories(folder: Path, item_ids: list[str]) -> None:
    """Thirty users with a list each up to as_of; ten of them come back on one of the two days after."""
    import numpy as np
    import pyarrow as pa

    from plumline.schema import HISTORIES, QUERIES, conform
    from plumline.tables import write_parquet

    generator = np.random.default_rng(9)
    end = datetime(AS_OF.year, AS_OF.month, AS_OF.day, tzinfo=UTC) + timedelta(days=1)
    users = [f"u{number:02d}" for number in range(1, 31)]
    ages = [np.sort(generator.uniform(0.1, 60, generator.integers(2, 15)))[::-1] for _ in users]
    times = [[int((end - timedelta(days=float(age))).timestamp() * 1000) for age in one] for one in ages]
    lists = [generator.choice(item_ids[:40], len(one)).tolist() for one in ages]
    rows = {
        "user_id": users,
        "item_ids": pa.array(lists, pa.list_(pa.string())),
        "timestamps": pa.array(times, pa.list_(pa.int64())),
    }
    rewards = pa.array([[1.0] * len(one) for one in lists], pa.list_(pa.float32()))
    write_parquet(folder / "histories.parquet", conform(pa.table({**rows, "rewards": rewards}), HISTORIES))
    asked = range(0, 30, 3)
    queries = {
        "user_id": [users[row] for row in asked],
        "day": [AS_OF + timedelta(days=1 + row % 2) for row in asked],
        "item_ids": [lists[row] for row in asked],
        "timestamps": [times[row] for row in asked],
        "relevant": [sorted({lists[row][-1], *generator.choice(item_ids[:40], 2).tolist()}) for row in asked],
    }
    for name in ("queries", "last_events"):
        write_parquet(folder / f"{name}.parquet", conform(pa.table(queries), QUERIES))
    write_parquet(folder / "labels.parquet", QUERIES.schema.empty_table())
    artifact.write_json(folder / "stats.json", {"as_of": AS_OF.isoformat(), "action": "purchase"})


def write_real_parts(folder: Path, seed: int, num_items: int = 60) -> Path:
    """All artifacts of a run with a random Llama of one layer; the last three items are retired.

    Items of one SID exist (the table has no tie-break level), and two runs of different seeds have different SIDs. The
    ranker of seed 1 has learned from ten users, that of another seed fuses ranks.
    """
    import numpy as np
    import pyarrow as pa

    from models.language import vocabulary
    from models.language.model import LanguageParams, build_language_model, save_language_model
    from models.memory import memory
    from models.ranking import ranker
    from models.ranking.lambdarank import LambdarankParams
    from models.retrieval import index
    from models.semantic_ids.table import SidTable
    from plumline.schema import ITEMS
    from plumline.sid import SidSpace
    from plumline.tables import write_parquet

    item_ids = [f"item{number:03d}" for number in range(num_items)]
    columns = {
        "item_id": item_ids,
        "title": [f"thing number {n} <a_1><b_1><c_1>" if n else None for n in range(num_items)],
        "first_seen_day": pa.array([date(2011, 1, 1 + n % 28) for n in range(num_items)], pa.date32()),
        "retired": [n >= num_items - 3 for n in range(num_items)],
        "channel": [(None, "a", "b", "c")[n % 4] for n in range(num_items)],
        "price": pa.array([None if n % 11 == 10 else float(n % 11) for n in range(num_items)], pa.float64()),
    }
    for field in ITEMS.schema:
        columns.setdefault(field.name, pa.nulls(num_items, field.type))
    users = pa.table({"user_id": ["u1", "u2"], "country": ["France", None]})
    space = SidSpace((8, 4, 4))
    codes = np.random.default_rng(seed).integers(0, space.sizes, (num_items, 3)).astype(np.int32)

    def write_catalog(scratch: Path) -> None:
        write_parquet(scratch / "items.parquet", pa.table(columns))
        write_parquet(scratch / "users.parquet", users)

    def write_weights(scratch: Path) -> None:
        params = LanguageParams(hidden=32, layers=1, heads=2, kv_heads=2, intermediate=32)
        words = vocabulary.Vocabulary.load(folder / "vocabulary")
        save_language_model(build_language_model(params, words, seed), scratch / "weights")

    def write_ranker(scratch: Path) -> None:
        trees = LambdarankParams(rounds=10, leaves=4, min_leaf=2)
        names = ("catalog", "histories", "sids", "vocabulary", "sft", "index", "memory")
        ranker.run(
            ranker.RankerParams(trees=trees, min_queries=2 if seed == 1 else 1000),
            **{name: folder / name for name in names},
            base=None,
            previous=None,
            seed=seed,
            out=scratch,
        )

    write_histories(folder / "histories", item_ids)
    dummy = {"seed": seed}
    bodies: dict[str, Callable[[Path], None]] = {
        "catalog": write_catalog,
        "embeddings": lambda scratch: artifact.write_json(scratch / "encoder" / "title.json", dummy),
        "quantizer": lambda scratch: artifact.write_json(scratch / "config.json", dummy),
        "sids": lambda scratch: SidTable(space, False, item_ids, codes).save(scratch),
        "vocabulary": lambda scratch: vocabulary.run(
            vocabulary.VocabularyParams(text_tokens=300 + seed, max_history=20),
            catalog=folder / "catalog",
            histories=folder / "histories",
            sids=folder / "sids",
            base=None,
            out=scratch,
        ),
        "corpus": lambda scratch: artifact.write_json(scratch / "report.json", dummy),
        "cpt": lambda scratch: artifact.write_json(scratch / "metrics.json", dummy),
        "sft": write_weights,
        "index": lambda scratch: index.run(
            index.IndexParams(), catalog=folder / "catalog", sids=folder / "sids", out=scratch
        ),
        "memory": lambda scratch: memory.run(
            memory.MemoryParams(), catalog=folder / "catalog", histories=folder / "histories", out=scratch
        ),
        "ranker": write_ranker,
        "scores": lambda scratch: artifact.write_json(scratch / "scores.json", dummy),
    }
    for name in INPUTS:
        write_part(folder, name, bodies[name])
    return folder


@dataclass(frozen=True)
class RealReleases:
    """A releases/ folder with two real tiny releases sealed in it, nothing promoted; ids in order of their seeds."""

    releases: Path
    ids: tuple[str, str]

    def folder(self, number: int) -> Path:
        """Where one lies."""
        return self.releases / "sealed" / self.ids[number]

    def new_home(self, home: Path) -> Path:
        """A home with a copy of both, nothing promoted."""
        shutil.copytree(self.releases, home / "releases")
        return home


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealReleases:
    """Read only; take `new_home` to change anything."""
    root = tmp_path_factory.mktemp("real")
    ids = []
    for seed in (1, 2):
        parts = write_real_parts(root / f"run_{seed}", seed)
        folder = seal_release(parts_of(parts), root / f"release_{seed}")
        ids.append(artifact.read_json(folder / "release.json")["release_id"])
        (root / "releases" / "sealed").mkdir(parents=True, exist_ok=True)
        folder.rename(root / "releases" / "sealed" / ids[-1])
    return RealReleases(root / "releases", (ids[0], ids[1]))
