"""What the gate will refuse stops a release between its stages, before anything is trained."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from flows.steps.foresight import ForeseenError, foresee
from flows.steps.graph import read_graph, upstream
from plumline import artifact
from plumline.tables import write_parquet

CHAMPION = "2020-01-01-aa"


@pytest.fixture
def made(home: Path) -> Path:
    """A home whose artifacts are those of a release that nothing speaks against."""
    write(home, "histories/stats.json", {"num_queries": 9, "as_of": "2020-01-02", "last_day": "2020-01-03"})
    figures = {"uniqueness": 0.9, "uniqueness_with_tie_break": 1.0, "content_uniqueness": 1.0}
    write(home, "sids/report.json", figures)
    write(home, "quantizer/report.json", {"num_contents": 9_000})
    write(home, "quantizer/config.json", {"codebooks": [256, 256]})
    index(home / "artifacts" / "index", 70)
    return home


def write(home: Path, name: str, value: dict) -> None:
    (home / "artifacts" / name).parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(home / "artifacts" / name, value)


def index(folder: Path, num_items: int) -> None:
    write_parquet(folder / "items.parquet", pa.table({"item_id": [f"i{row}" for row in range(num_items)]}))


def answer(home: Path, num_items: int) -> None:
    """Make a champion with an index of so many items."""
    sealed = home / "releases" / "sealed" / CHAMPION
    with artifact.writing(sealed, stage="release", key="k", params={}) as out:
        index(out / "index", num_items)
    pointer = {"release_id": CHAMPION, "fencing": 1, "previous": None, "history": [], "action": "promote"}
    artifact.replace_file(home / "releases" / "pointers" / "champion.json", json.dumps(pointer))


def set_gate(home: Path, **limits: float) -> None:
    path = home / "recipes" / "cpu_tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["gate"] |= limits
    path.write_text(yaml.safe_dump(recipe))


def test_what_the_gate_would_pass_goes_on(made: Path) -> None:
    answer(made, 100)
    for look in foresee(made, base="").values():
        look()


def test_every_look_comes_before_the_first_training(made: Path) -> None:
    order = upstream(read_graph(made), "release")
    looks = foresee(made, base="")
    assert set(looks) == {"histories", "sids", "index"}
    assert max(order.index(name) for name in looks) < min(order.index(name) for name in ("corpus", "cpt", "sft"))


def test_nothing_to_score_on(made: Path) -> None:
    write(made, "histories/stats.json", {"num_queries": 0, "as_of": "2020-01-02", "last_day": "2020-01-02"})
    with pytest.raises(ForeseenError, match=r"as_of 2020-01-02: 0 queries, .* give an earlier --as-of"):
        foresee(made, base="")["histories"]()


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("", r"set quantizer\.codebooks: \[512, 512\] in the recipe \(now \[256, 256\]\)"),
        (CHAMPION, r"the codebooks of the release that it continues, \[256, 256\]; plumline retrain-sids"),
    ],
)
def test_sids_that_tell_too_little_apart(made: Path, base: str, said: str) -> None:
    figures = {"uniqueness": 0.4899, "uniqueness_with_tie_break": 1.0, "content_uniqueness": 1.0}
    write(made, "sids/report.json", figures)
    look = foresee(made, base=base)["sids"]
    with pytest.raises(ForeseenError, match=r"^uniqueness: 0\.4899 share .*, at least 0\.5, .*" + said) as refusal:
        look()
    assert refusal.value.exit_code == 2
    assert "\n" not in str(refusal.value)


def test_the_limits_are_the_recipe_s(made: Path) -> None:
    set_gate(made, min_uniqueness=0.95)
    with pytest.raises(ForeseenError, match=r"at least 0\.95"):
        foresee(made, base="")["sids"]()


def test_a_quantizer_of_a_release_that_counted_no_contents(made: Path) -> None:
    write(made, "quantizer/report.json", {"num_items": 9_000})
    write(made, "sids/report.json", {"uniqueness": 0.3, "uniqueness_with_tie_break": 1.0})
    with pytest.raises(ForeseenError, match=r"0\.3 share of items alone on a SID, at least 0\.5"):
        foresee(made, base=CHAMPION)["sids"]()


def test_a_catalogue_that_has_lost_a_third(made: Path) -> None:
    answer(made, 101)
    with pytest.raises(ForeseenError, match=r"index_size: 70 items; champion 101, at least 71"):
        foresee(made, base="")["index"]()
