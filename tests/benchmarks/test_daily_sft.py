"""The study of the days: its sums, and that no day knows the next one."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from features.histories import read_histories, read_queries
from models.corpus.examples import ExamplesBuilder
from models.language.model import save_language_model
from models.semantic_ids.table import SidTable
from plumline.stage import read_recipe
from plumline.tables import write_parquet

DAY = datetime.timedelta(days=1)


@pytest.fixture(autouse=True)
def benchmarks_on_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root))


def row(arm: str, day: str, users: list[str], masked: list[float | None], plain: list[float]) -> dict[str, Any]:
    figures = {"tokens": 10, "cpu_seconds": 1.0, "distance": 0.5, "forgetting": {"unseen": 2.0, "trained": 1.0}}
    recalls = {"seen_masked": masked, "not_masked": plain}
    return {"seed": 17, "arm": arm, "day": day, "users": users, "recall@10": recalls, **figures}


def test_days_are_pooled_and_differences_paired() -> None:
    from benchmarks.daily_sft import summarise, table

    rows = [
        row("previous", "2011-01-01", ["a", "b"], [0.5, None], [0.5, 0.1]),
        row("none", "2011-01-01", ["a", "b"], [0.25, None], [0.5, 0.1]),
        row("previous", "2011-01-02", ["a", "c", "d"], [0.0, 1.0, 0.0], [0.3, 1.0, 0.0]),
        row("none", "2011-01-02", ["a", "c", "d"], [0.0, 0.5, 0.0], [0.0, 1.0, 0.0]),
    ]
    found = summarise(rows)
    assert found["previous"]["seen_masked"]["recall@10"] == pytest.approx(1.5 / 4)  # a query, not a day, counts one
    assert found["previous"]["not_masked"]["recall@10"] == pytest.approx(1.9 / 5)
    assert found["previous"]["seen_masked"]["difference"] == 0.0
    assert found["none"]["seen_masked"]["difference"] == pytest.approx(-0.75 / 4)
    assert found["none"]["not_masked"]["difference_se"] > 0
    assert found["none"]["not_masked"]["difference_se"] < found["none"]["not_masked"]["recall@10_se"]
    lines = list(table(rows, [{"arm": "CPT", "distance": 0.0, "forgetting": {"unseen": 1.5, "trained": 1.0}}]))
    assert sum("2011-01-02" in line for line in lines) == 1


def tiny_model(init_std: float) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=init_std, pad_token_id=0, **sizes))


def test_distance_and_forgetting(tmp_path: Path) -> None:
    from benchmarks.measuring.forgetting import distance, mean_loss

    model = tiny_model(0.3)
    save_language_model(model, tmp_path / "near")
    for parameter in model.parameters():
        parameter.data *= 1.25
    save_language_model(model, tmp_path / "far")
    assert distance(tmp_path / "near", tmp_path / "near") == 0.0
    assert distance(tmp_path / "far", tmp_path / "near") == pytest.approx(0.25, abs=1e-5)
    builder = ExamplesBuilder()
    for length in (5, 9, 3):
        builder.add_sequence(np.arange(10, 10 + length, dtype=np.int32), "metadata")
    examples = builder.build()
    assert mean_loss(tiny_model(1e-6), examples, np.array([0, 2]), 16) == pytest.approx(np.log(50), abs=1e-4)
    parts = [mean_loss(model, examples, np.array([row]), 16) for row in (0, 2)]
    together = (4 * parts[0] + 2 * parts[1]) / 6  # targets count the same, wherever they stand
    assert mean_loss(model, examples, np.array([0, 2]), 16) == pytest.approx(together, abs=1e-5)


@pytest.mark.slow
def test_a_day_knows_no_later_one(root: Path, tmp_path: Path) -> None:
    """40 items, of which one comes up on each of the last days; 30 users who come every other day."""
    from benchmarks.measuring.days import Log

    rng = np.random.default_rng(2)
    first = datetime.datetime(2020, 1, 1, 9, tzinfo=datetime.UTC)
    kinds, things = ["red", "blue", "green", "small", "large"], ["cup", "plate", "bowl", "lamp", "chair", "table"]
    names = [f"{rng.choice(kinds)} {rng.choice(kinds)} {rng.choice(things)}" for _ in range(40)]
    items = pa.table({"item_id": [f"i{n}" for n in range(40)], "title": names})
    steps = [
        (f"u{user}", f"i{38 + day - 18 if day > 17 and user < 4 else rng.integers(38)}", first + day * DAY)
        for day in range(20)
        for user in range(day % 2, 30, 2)
        for _ in range(2)
    ]
    columns = zip(*dict.fromkeys(steps), strict=True)
    events = pa.table(dict(zip(("user_id", "item_id", "timestamp"), map(list, columns), strict=True)))
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "items.parquet", items)
    write_parquet(tmp_path / "data" / "events.parquet", events)
    recipe = read_recipe(root / "recipes" / "cpu_tiny.yaml")
    recipe["quantizer"] |= {"codebooks": [8, 8], "steps": 20, "warmup_steps": 5}
    recipe["vocabulary"] = {"text_tokens": 300}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    log = Log.land(tmp_path / "data", tmp_path / "cache", tmp_path / "recipe.yaml", seed=17)
    assert len(log.days) == 20
    days = [log.first_day(log.days[16])]
    days += [log.following(days[-1])]
    days += [log.following(days[-1])]
    tables = [SidTable.load(day.folder / "sids").codes_of for day in days]
    for day, before, after in zip(days[1:], tables[:-1], tables[1:], strict=True):
        assert before.items() <= after.items()  # SIDs stay; new items get theirs
        histories = read_histories(day.folder / "histories").column("timestamps").combine_chunks().flatten().to_numpy()
        end = datetime.datetime.combine(day.as_of + DAY, datetime.time(), datetime.UTC).timestamp() * 1000
        assert end - 86_400_000 <= histories.max() < end
        assert set(read_queries(day.folder / "histories").column("day").to_pylist()) == {day.asked}
    assert "i38" in tables[-1]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.parquet")}
    log.following(days[0])  # what is finished is found finished
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
