"""Item content → one vector a modality.

reads   catalog: items; base: its fitted encoders and its SID table
writes  vectors.parquet (`models.semantic_ids.vectors`: a column a modality, null where the item lacks it), encoder/
run     python -m models.semantic_ids.embeddings --params recipes/cpu_tiny.yaml --catalog … --base= --out …

Modalities: a text one for every text encoder of the recipe (title, description, channel and topics as one text), `tags`
(channel and topics as they are, for what a word splitter would tear), and every `emb_*` column. One that no item has is
left out; an item that lacks one has mask False and a zero vector. With a base, the base's encoders embed the items that
its SID table lacks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from models.semantic_ids.table import SidTable
from models.semantic_ids.text_encoders import HuggingFaceEncoder, TfidfSvd, load_encoder, terms_of
from models.semantic_ids.vectors import BLOCK, Vectors, VectorWriter
from plumline import artifact, tables
from plumline.errors import InputError
from plumline.schema import DESCRIBING
from plumline.stage import Params, main

TFIDF_SVD = "tfidf_svd"
TEXT, TAGS = "text", "tags"
Encoder = TfidfSvd | HuggingFaceEncoder


class EmbeddingsParams(Params):
    text_encoders: tuple[str, ...] = (TFIDF_SVD,)
    """Each a modality of its own: `tfidf_svd` (modality `text`), `minilm` (the weights that plumline[minilm] installs,
    modality `text_minilm`), a Hugging Face id or a local folder (mean pooling, unit length, `text_<last part>`)."""
    text_dimensions: int = Field(default=64, ge=1)
    """Most SVD dimensions of a TF-IDF vector; a small corpus has fewer. A Hugging Face encoder has its own."""
    text_signs: int = Field(default=16, ge=0, multiple_of=8)
    """Further dimensions of such a vector that keep rare terms apart: a random projection of the TF-IDF row. 0: none;
    beside a pre-trained encoder they are not needed."""
    text_terms: int = Field(default=100_000, ge=1)
    """Most terms of a TF-IDF vocabulary."""
    text_tokens: int = Field(default=128, ge=8)
    """Tokens after which a Hugging Face encoder's text is cut."""


@dataclass(frozen=True)
class Encoders:
    """The fitted encoders of a catalogue.

    fitted: modality → encoder, where the catalogue had such values; `tags` reads channel and topics, the others text.
    columns: `emb_*` column → its width.
    """

    fitted: Mapping[str, Encoder]
    columns: Mapping[str, int]

    @classmethod
    def fit(cls, items: pa.Table, params: EmbeddingsParams) -> "Encoders":
        """Fit on a table with ITEMS columns. Raises InputError if no item has anything that describes it."""
        fitted: dict[str, Encoder] = {}
        # Without any title or description the text would only repeat the tags.
        if _has_values(items, "title") or _has_values(items, "description"):
            for encoder in params.text_encoders:
                if encoder != TFIDF_SVD:
                    fitted[text_modality(encoder)] = HuggingFaceEncoder(encoder, params.text_tokens).identified()
                elif any(documents := [terms_of(text) for text in _texts(items)]):
                    fitted[TEXT] = _fit_terms(documents, params)
        if any(tags := _tags(items)):
            fitted[TAGS] = _fit_terms(tags, params)
        columns = {}
        for name in sorted(name for name in items.column_names if name.startswith("emb_")):
            values, mask = _embedding_column(items, name, width=None)
            if mask.any():
                columns[name] = values.shape[1]
        if not fitted and not columns:
            raise InputError(
                f"items: none of {items.num_rows} has a word in {', '.join(DESCRIBING)} or an emb_ vector; "
                "fill at least one of these columns"
            )
        return cls(fitted, columns)

    def embed(self, items: pa.Table) -> Vectors:
        """Embed a table with ITEMS columns, any number of rows. Raises InputError naming the item of a bad vector."""
        modalities: dict[str, np.ndarray] = {}
        masks: dict[str, np.ndarray] = {}
        for name, encoder in self.fitted.items():
            if name == TAGS:
                modalities[name] = encoder.encode(_tags(items))  # type: ignore[arg-type]
            else:
                modalities[name] = _embed_text(encoder, items)
        for name, values in modalities.items():
            masks[name] = np.asarray(values.any(axis=1), bool)
        for name, width in self.columns.items():
            modalities[name], masks[name] = _embedding_column(items, name, width)
        return Vectors(tables.column(items, "item_id"), modalities, masks)

    def embed_blocks(self, items: pa.Table) -> Iterator[Vectors]:
        """Embed a large table block by block."""
        for start in range(0, items.num_rows, BLOCK):
            yield self.embed(items.slice(start, BLOCK))

    @property
    def widths(self) -> dict[str, int]:
        """Modality → d."""
        return {name: encoder.dimensions for name, encoder in self.fitted.items()} | dict(self.columns)

    def save(self, folder: Path) -> None:
        """Write config.json and each encoder's files (no pickle)."""
        fitted = {name: encoder.save(folder, name) for name, encoder in self.fitted.items()}
        artifact.write_json(folder / "config.json", {"fitted": fitted, "columns": dict(self.columns)})

    @classmethod
    def load(cls, folder: Path) -> "Encoders":
        """Read the folder encoder/ of an embeddings artifact."""
        config = artifact.read_json(folder / "config.json")
        return cls(
            {name: load_encoder(folder, name, about) for name, about in config["fitted"].items()}, config["columns"]
        )


def run(params: EmbeddingsParams, *, catalog: Path, base: Path | None, out: Path) -> None:
    """Fit encoders (or take the base's) and embed the items (or those the base's SID table lacks)."""
    from features.catalog import Catalog

    items = Catalog.load(catalog).items
    if base is None:
        encoders = Encoders.fit(items, params)
        encoders.save(out / "encoder")
    else:
        adopted = base / "embeddings"
        names = [path.relative_to(adopted).as_posix() for path in artifact.list_files(adopted)]
        artifact.copy_payload(adopted, out, {name: name for name in names if name.startswith("encoder/")})
        encoders = Encoders.load(out / "encoder")
        known = pa.array(SidTable.load(base / "sids").item_ids, pa.string())
        items = items.filter(pc.invert(pc.is_in(items.column("item_id"), value_set=known)))
    with VectorWriter(out, encoders.widths) as writer:
        for block in encoders.embed_blocks(items):
            writer.write(block)


def text_modality(encoder: str) -> str:
    """Name of the modality that a text encoder makes."""
    return TEXT if encoder == TFIDF_SVD else f"{TEXT}_{Path(encoder).name}"


def _embed_text(encoder: Encoder, items: pa.Table) -> np.ndarray:
    texts = _texts(items)
    if isinstance(encoder, TfidfSvd):
        return encoder.encode([terms_of(text) for text in texts])
    rows = [row for row, text in enumerate(texts) if text]
    out = np.zeros((len(texts), encoder.dimensions), np.float32)
    if rows:
        out[rows] = encoder.encode([texts[row] for row in rows])
    return out


def _fit_terms(documents: list[list[str]], params: EmbeddingsParams) -> TfidfSvd:
    return TfidfSvd.fit(
        documents,
        dimensions=params.text_dimensions,
        num_signs=params.text_signs,
        max_terms=params.text_terms,
    )


def _has_values(items: pa.Table, name: str) -> bool:
    return name in items.column_names and any(tables.column(items, name))


def _values(items: pa.Table, name: str) -> list:
    return tables.column(items, name) if name in items.column_names else [None] * items.num_rows


def _texts(items: pa.Table) -> list[str]:
    parts = zip(*(_values(items, name) for name in DESCRIBING), strict=True)
    return [
        ". ".join(filter(None, (title, description, channel, ", ".join(filter(None, topics or [])))))
        for title, description, channel, topics in parts
    ]


def _tags(items: pa.Table) -> list[list[str]]:
    return [
        [f"channel={channel}"] * bool(channel) + [f"topic={topic}" for topic in topics or [] if topic]
        for channel, topics in zip(_values(items, "channel"), _values(items, "topics"), strict=True)
    ]


def _embedding_column(items: pa.Table, name: str, width: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, width) float32 and mask (N,) of an `emb_*` column; width None: that of the first vector, 0 if none."""
    if name not in items.column_names:
        return np.zeros((items.num_rows, width or 0), np.float32), np.zeros(items.num_rows, bool)
    column = items.column(name).combine_chunks()
    mask = np.asarray(pc.is_valid(column).to_numpy(zero_copy_only=False), bool)
    lengths = np.asarray(pc.list_value_length(column).fill_null(-1))
    if width is None:
        width = int(lengths[mask][0]) if mask.any() else 0
    wrong = np.flatnonzero(mask & (lengths != width))
    if len(wrong):
        raise InputError(
            f"items: {_item(items, wrong[0])}: {name} has {lengths[wrong[0]]} numbers where the others have {width}; "
            "give every item the same number, or none"
        )
    values = np.zeros((items.num_rows, width), np.float32)
    values[mask] = pc.list_flatten(column.filter(pa.array(mask))).to_numpy(zero_copy_only=False).reshape(-1, width)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise InputError(
            f"items: {_item(items, wrong[0])}: {name} holds a value that is no finite number; mend or empty it"
        )
    return values, mask


def _item(items: pa.Table, row: int) -> str:
    return f"item {items.column('item_id')[int(row)].as_py()!r}"


if __name__ == "__main__":
    main(run, section="embeddings")
