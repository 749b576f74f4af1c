"""A ranker as it lies on the disk: loaded, of older features, of features that are gone, damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.ranking import frozen_ranker
from models.ranking.candidates import SOURCES, CandidateParams, Candidates
from models.ranking.features import FEATURES
from models.ranking.frozen_ranker import Ranker
from models.ranking.lambdarank import fuse
from plumline import artifact
from plumline.errors import CorruptArtifactError, MissingArtifactError


@pytest.fixture(scope="module")
def made(rank: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rank(tmp_path_factory.mktemp("ranker") / "out", width=7, leave_one_out_queries=0)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def some_candidates() -> tuple[Candidates, np.ndarray]:
    rng = np.random.default_rng(2)
    places = np.where(rng.random((12, len(SOURCES))) < 0.5, np.nan, rng.integers(0, 60, (12, len(SOURCES))))
    table = rng.normal(size=(12, len(FEATURES))).astype(np.float32)
    return Candidates(np.arange(12), places.astype(np.float32), places.astype(np.float32)), table


def test_what_was_sealed_is_what_orders(made: Path) -> None:
    import lightgbm

    ranker = Ranker.load(made)
    assert (ranker.candidates, ranker.verb) == (CandidateParams(width=7), "played")
    assert ranker.prefix_words == artifact.read_json(made / "words.json")
    candidates, table = some_candidates()
    booster: Any = lightgbm.Booster(model_file=made / "model.txt")
    np.testing.assert_allclose(ranker.scores(candidates, table), booster.predict(table), atol=1e-12)
    rows = np.array([7, 0])
    told = ranker.judge(candidates, table).shares(rows)
    assert [sum(one.values()) for one in told] == pytest.approx([1, 1])
    assert ranker.scores(Candidates(*(part[:0] for part in (candidates.items, candidates.scores, candidates.places))),
                         table[:0]).tolist() == []  # fmt: skip
    assert ranker.judge(candidates, table).shares(rows[:0]) == []


def test_nothing_of_lightgbm_is_needed_to_answer(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lightgbm", None)  # an import of it would fail
    candidates, table = some_candidates()
    assert len(Ranker.load(made).scores(candidates, table)) == 12


def test_a_ranker_of_fewer_features_goes_on_ordering(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, table = some_candidates()
    before = Ranker.load(made).scores(candidates, table)
    monkeypatch.setattr(frozen_ranker, "FEATURES", ("brand_new_score", *FEATURES))
    wider = np.concatenate([np.full((12, 1), 99, np.float32), table], axis=1)
    np.testing.assert_array_equal(Ranker.load(folder).scores(candidates, wider), before)


def test_where_a_feature_is_gone_places_are_fused_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = artifact.read_json(folder / "config.json")
    artifact.write_json(folder / "config.json", about | {"features": [*FEATURES[:-1], "gone_score"]})
    ranker = Ranker.load(folder)
    candidates, table = some_candidates()
    assert ranker.trees is None
    assert ranker.scores(candidates, table).tolist() == fuse(candidates).tolist()
    assert sum(ranker.judge(candidates, table).shares(np.array([3]))[0].values()) == pytest.approx(1)
    assert "reads gone_score, which this version does not know; places are fused" in capsys.readouterr().err


def test_a_ranker_without_its_trees_is_named(folder: Path) -> None:
    (folder / "model.txt").write_text("torn")
    with pytest.raises(CorruptArtifactError, match="run the stage ranker again"):
        Ranker.load(folder)
    (folder / "model.txt").unlink()
    with pytest.raises(MissingArtifactError, match=r"model\.txt: no such file"):
        Ranker.load(folder)
