import pyarrow as pa

from features.intake.staged import FILE, LINE, RowsOf


def test_tables_in_memory_are_rows() -> None:
    rows = RowsOf([pa.table({"a": ["x", "y"]}), pa.table({"b": [1], FILE: pa.array([1], pa.int32())})], ("f", "g"))
    first, second = rows.blocks()
    assert rows.columns == ("a", "b")
    assert first.to_pylist() == [{"a": "x", "b": None, FILE: 0, LINE: 1}, {"a": "y", "b": None, FILE: 0, LINE: 2}]
    assert second.to_pylist() == [{"a": None, "b": 1, FILE: 1, LINE: 3}]
    assert first.schema == second.schema
    assert rows.place(1, 3) == "g: line 3"
    assert [block.num_rows for block in rows.blocks()] == [2, 1]


def test_tables_of_other_types_come_in_the_common_one() -> None:
    rows = RowsOf([pa.table({"a": ["x"]}), pa.table({"a": [1.0]})])
    assert [block.column("a").to_pylist() for block in rows.blocks()] == [["x"], ["1.0"]]
