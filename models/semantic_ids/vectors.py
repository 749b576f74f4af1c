"""Vectors of items, one a modality: in memory as a block, on disk as parquet that is written and read in blocks.

    vectors.parquet   item_id string, then a column a modality: binary(4·d), d little-endian float32, null where the
                      item lacks the modality; the field's metadata says d. Page checksums, no compression.

A list column of the same numbers reads three times slower (docs/experiments.md), and a million items of two 384-d
modalities do not fit into the memory that a laptop can spare, so whoever can works block by block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError

FILE = "vectors.parquet"
BLOCK = 8192
"""Items of a row group, and of a block unless said otherwise: 25 MB for two 384-d modalities."""


@dataclass(frozen=True)
class Vectors:
    """Vectors of items. N items, a modality's width d.

    item_ids: N ids. modalities: name → (N, d) float32. masks: name → (N,) bool, False where the item lacks it (zeros).
    """

    item_ids: list[str]
    modalities: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]

    @property
    def widths(self) -> dict[str, int]:
        """Modality → d, in the order of the modalities."""
        return {name: values.shape[1] for name, values in self.modalities.items()}

    def take(self, rows: np.ndarray) -> "Vectors":
        """Some rows, in the order given. rows: (n,) integers."""
        return Vectors(
            [self.item_ids[row] for row in rows],
            {name: values[rows] for name, values in self.modalities.items()},
            {name: mask[rows] for name, mask in self.masks.items()},
        )

    def select(self, names: list[str]) -> "Vectors":
        """Some modalities, in the order given. Raises InputError naming one that is not there."""
        for name in names:
            if name not in self.modalities:
                raise InputError(
                    f"embeddings: no modality {name!r}; there are {sorted(self.modalities)}; "
                    "mend quantizer.modalities, or embed items that have it"
                )
        return Vectors(
            self.item_ids, {n: self.modalities[n] for n in names}, {name: self.masks[name] for name in names}
        )

    def blocks(self, size: int = BLOCK) -> Iterator["Vectors"]:
        """The same items as consecutive blocks."""
        for start in range(0, len(self.item_ids), size):
            yield self.take(np.arange(start, min(start + size, len(self.item_ids))))

    def save(self, folder: Path) -> None:
        """Write vectors.parquet."""
        with VectorWriter(folder, self.widths) as writer:
            for block in self.blocks():
                writer.write(block)

    @classmethod
    def load(cls, folder: Path) -> "Vectors":
        """Read all of an embeddings artifact. Raises MissingArtifactError or CorruptArtifactError."""
        file = VectorFile(folder)
        return concatenate(list(file.blocks()), file.widths)


def concatenate(blocks: list[Vectors], widths: dict[str, int]) -> Vectors:
    """One block of many. widths: modality → d, for when there are none."""
    return Vectors(
        [item_id for block in blocks for item_id in block.item_ids],
        {
            name: np.concatenate([np.zeros((0, width), np.float32), *(block.modalities[name] for block in blocks)])
            for name, width in widths.items()
        },
        {name: np.concatenate([np.zeros(0, bool), *(block.masks[name] for block in blocks)]) for name in widths},
    )


class VectorWriter:
    """Writes vectors.parquet block by block: `with VectorWriter(folder, widths) as writer: writer.write(block)`."""

    def __init__(self, folder: Path, widths: dict[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fields = [
            pa.field(name, pa.binary(4 * width), metadata={"dimensions": str(width)})
            for name, width in sorted(widths.items())
        ]
        self._schema = pa.schema([pa.field("item_id", pa.string(), nullable=False), *fields])
        self._writer = pq.ParquetWriter(
            folder / FILE, self._schema, compression="none", use_dictionary=False, write_page_checksum=True
        )

    def write(self, block: Vectors) -> None:
        """Append the items of a block."""
        columns: list[pa.Array] = [pa.array(block.item_ids, pa.string())]
        for field in list(self._schema)[1:]:
            values = np.ascontiguousarray(block.modalities[field.name], "<f4")
            valid = pa.py_buffer(np.packbits(block.masks[field.name], bitorder="little").tobytes())
            columns.append(pa.FixedSizeBinaryArray.from_buffers(field.type, len(values), [valid, pa.py_buffer(values)]))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=BLOCK)

    def __enter__(self) -> "VectorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


class VectorFile:
    """Reader of an embeddings artifact. widths: modality → d, sorted by name. num_items: N.

    Every read checks the pages' checksums. Raises MissingArtifactError or CorruptArtifactError naming the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        with self._open() as file:
            schema = file.schema_arrow
            self.num_items = int(file.metadata.num_rows)
            fields = [schema.field(name) for name in schema.names if name != "item_id"]
            self.widths = {field.name: int(field.metadata[b"dimensions"]) for field in fields}

    def blocks(self, size: int = BLOCK) -> Iterator[Vectors]:
        """All items, in the order of the file, as blocks of at most `size`."""
        try:
            with self._open() as file:
                for batch in file.iter_batches(size, use_threads=False):
                    yield self._block(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._corrupt(error) from None

    def take(self, rows: np.ndarray) -> Vectors:
        """Some rows. rows: (n,) integers, ascending; reads the file once from start to end and keeps only these."""
        kept, start = [], 0
        for block in self.blocks():
            first, last = np.searchsorted(rows, [start, start + len(block.item_ids)])
            if first < last:
                kept.append(block.take(rows[first:last] - start))
            start += len(block.item_ids)
        return concatenate(kept, self.widths)

    def item_ids(self) -> list[str]:
        """All N ids, in the order of the file."""
        try:
            with self._open() as file:
                return list(file.read(["item_id"], use_threads=False).column(0).to_pylist())
        except (pa.ArrowInvalid, OSError) as error:
            raise self._corrupt(error) from None

    def _open(self) -> pq.ParquetFile:
        if not self.path.is_file():
            raise MissingArtifactError(f"{self.path}: no such file; run the stage embeddings")
        try:
            # pre_buffer would hold what was read until the end: 3 GB for a million items, and five times slower.
            return pq.ParquetFile(self.path, page_checksum_verification=True, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._corrupt(error) from None

    def _corrupt(self, error: Exception) -> CorruptArtifactError:
        return CorruptArtifactError(f"{self.path}: unreadable ({error}); run the stage embeddings again")

    def _block(self, batch: pa.RecordBatch) -> Vectors:
        modalities, masks = {}, {}
        for name, width in self.widths.items():
            column = batch.column(name)
            mask = column.is_valid().to_numpy(zero_copy_only=False)
            raw = np.frombuffer(column.buffers()[1], "<f4", count=len(column) * width, offset=column.offset * width * 4)
            values = raw.reshape(-1, width)
            masks[name] = mask
            modalities[name] = values if mask.all() else np.where(mask[:, None], values, np.float32(0))
        return Vectors(batch.column("item_id").to_pylist(), modalities, masks)
