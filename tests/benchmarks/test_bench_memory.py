"""What the memory is measured on: inputs that the stage reads, times that ascend, chains that are followed."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from benchmarks.bench_memory import EVENTS_A_USER, run_stage, write_inputs
from features.histories import read_histories
from models.memory.memory import Memory


def test_the_stage_reads_what_is_drawn(tmp_path: Path) -> None:
    write_inputs(tmp_path, 300, 20 * EVENTS_A_USER)
    histories = read_histories(tmp_path / "histories")
    assert histories.num_rows == 20
    for times in histories.column("timestamps").to_pylist():
        assert times == sorted(times)
    figures = run_stage(tmp_path)
    memory = Memory.load(tmp_path / "memory")
    assert memory.count.sum() == pc.sum(pc.list_value_length(histories.column("item_ids"))).as_py()
    assert memory.end_ms > max(times)
    assert figures["next_entries"] == len(memory.tables["next"].items) > 0
    assert 0 < figures["next_fresh_entries"] < figures["next_entries"]
    best = [memory.tables["next"].row(row)[1] for row in range(300)]
    assert np.mean([weights[0] > 1.5 * weights[1] for weights in best if len(weights) > 1]) > 0.2  # the chain
