"""Put SIDs into a language model's vocabulary, and keep everybody else out of them.

reads   catalog, histories, sids, base
writes  tokenizer/ (Hugging Face), vocabulary.json, sid_text.npz (sid_text.py), text_rows.npz (with trim_text)
run     python -m models.language.vocabulary --params recipes/cpu_tiny.yaml --catalog … --histories … \\
            --sids … --base= --out artifacts/vocabulary

Token ids: text tokens first, then one block of reserved tokens: control, gaps (hours since the event before, in log
buckets), numbers (watch ratio, price, age …; PLUM 2.2: "custom tokens for numerical features"), SIDs by level. All of
them are registered as SPECIAL, which is what lets `encode_untrusted` split them when they turn up in a title; SIDs
enter a sequence as ids, never as text.

The edges of the numbers are quantiles of what the histories and the catalogue hold, and stand in vocabulary.json:
{"numbers": {"rating": {"first_id": 2067, "edges": [2.0, 3.0, 4.0, 5.0]}}} makes <rating_0> (below 2), <rating_1>
(2 up to 3) … <rating_4> (5 and more). A number that nobody knows, or that is the same everywhere, has no tokens.

How a prompt looks stands there as well, and its features (`history_features`, `context_features`, `max_title_tokens`)
only where it has some: a release serves what it was trained on, and one of before there were features has none.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from features.catalog import Catalog
from features.histories import read_histories
from models.language.numbers import learn_edges
from models.language.phrases import PHRASES
from models.language.places import most_places
from models.language.prompt import most_tokens
from models.language.sid_text import write_sid_text
from models.language.text_tokenizer import add_special, load_tokenizer, train_tokenizer, trim_tokenizer
from models.language.words import CONTROL, Vocabulary, clean_text, profile_text, read_profiles
from models.semantic_ids.table import SidTable
from plumline.artifact import copy_payload, write_json
from plumline.errors import InputError
from plumline.schema import DESCRIBING
from plumline.stage import Params, main, say
from plumline.tables import save_arrays

Segment = Literal["history", "user", "context"]
HistoryFeature = Literal["channel", "watch_ratio", "watch_time_s", "rating", "price", "quantity"]
"""The item's channel, or a number of the event (plumline.schema.NUMBERS)."""
ContextFeature = Literal["channel", "title"]


class VocabularyParams(Params):
    """The words of the language model, and the shape of a prompt, which is stored with them."""

    text_model: str | None = None
    """Hugging Face id, folder, folder with a .gguf file, or `smollm` (the extra plumline[smollm]) whose tokenizer is
    extended; null: a byte-level BPE tokenizer is trained on the catalogue."""
    text_tokens: int = 2048
    """Most text tokens of the trained tokenizer (at least 256); fewer if the texts do not yield them."""
    trim_text: bool = False
    """Of a pre-trained tokenizer (BPE) keep only the tokens that the catalogue, the phrases, the profiles and
    general_text need, and every single byte or character; the model then starts with these rows."""
    general_text: Path | None = None
    """A text file, a text a line, whose tokens trim_text keeps too."""
    num_gaps: int = 12
    """Buckets for hours since the event before; bucket i begins at 2^i hours."""
    num_buckets: int = 8
    """Most buckets of each number (watch ratio, price, age …), of equal mass; below 2: numbers have no tokens."""
    template: tuple[Segment, ...] = ("history", "user", "context")
    """Segments of a prompt, in order; `history` must be there, the others may be left out."""
    item_places: bool = False
    """Whether an event of the history is one place of the prompt, the sum of its tokens' embeddings, and a head of its
    own names the next SID (models/language/places.py): a history costs a third or a fourth. For models from scratch."""
    max_history: int = 50
    """Items of a history that a prompt holds, the most recent ones."""
    history_features: tuple[HistoryFeature, ...] = ()
    """What stands behind each SID of a history, in order, where it is known: the item's channel, the event's numbers
    (PLUM Figure 2). Each number costs a prompt max_history tokens, the channel up to 8 times as many."""
    context_features: tuple[ContextFeature, ...] = ()
    """What stands before the SID of the context item, in order, where it is known."""
    max_title_tokens: int = Field(default=12, ge=1)
    """Tokens of a title in context_features."""
    max_profile_tokens: int = 24
    """Tokens of all profile features of a user together."""
    max_profile_values: int = 128
    """A column of users with more different values than this (a date, a name) is no feature and stays out."""


def run(params: VocabularyParams, *, catalog: Path, histories: Path, sids: Path, base: Path | None, out: Path) -> None:
    """Write the vocabulary; with a base release, adopt its own. See the module's docstring."""
    if base is not None:
        copy_payload(base / "vocabulary", out)
        return
    _check(params)
    table, known = SidTable.load(sids), Catalog.load(catalog)
    space = table.space
    columns = _profile_columns(known, params.max_profile_values)
    tokenizer, text_rows = _text_tokenizer(params, known, columns)
    base_special = sorted(tokenizer.added_tokens_decoder)
    edges = learn_edges(read_histories(histories), known, params.num_buckets)
    gaps = [f"<gap_{i}>" for i in range(params.num_gaps)]
    buckets = [f"<{name}_{i}>" for name, found in edges.items() for i in range(len(found) + 1)]
    present = tokenizer.get_vocab()
    control = [token for token in CONTROL if token not in present]  # a base that has <bos> has taught it already
    if clash := sorted(present.keys() & {*gaps, *buckets, *space.tokens()}):
        raise InputError(f"text_model {params.text_model}: its vocabulary already holds {clash[0]!r}; choose another")
    reserved_base = len(tokenizer)
    add_special(tokenizer, [*control, *gaps, *buckets, *space.tokens()])
    gap_base = reserved_base + len(control)
    first_ids = np.cumsum([gap_base + len(gaps), *(len(found) + 1 for found in edges.values())]).tolist()
    sid_base = first_ids.pop()
    assert tokenizer.convert_tokens_to_ids(space.token(0, 0)) == sid_base
    if params.text_model is None:
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<bos>", "<eos>", "<pad>"
    tokenizer.save_pretrained(out / "tokenizer")
    if text_rows is not None:
        save_arrays(out / "text_rows.npz", rows=text_rows)
    write_json(
        out / "vocabulary.json",
        {
            "text_model": params.text_model,
            "size": len(tokenizer),
            "reserved_base": reserved_base,
            "control": {token: tokenizer.convert_tokens_to_ids(token) for token in CONTROL},
            "gap_base": gap_base,
            "gap_edges_hours": [float(2**i) for i in range(params.num_gaps)],
            "numbers": {
                name: {"first_id": first, "edges": list(found)}
                for first, (name, found) in zip(first_ids, edges.items(), strict=True)
            },
            "sid_base": sid_base,
            "sizes": list(space.sizes),
            "base_special": base_special,
            "template": list(params.template),
            "max_history": params.max_history,
            "profile_columns": columns,
            "max_profile_tokens": params.max_profile_tokens,
            **_features(params),
        },
    )
    words = Vocabulary.load(out)
    write_sid_text(words, table, known)
    say(
        f"vocabulary: {reserved_base} text tokens, {len(tokenizer) - reserved_base} reserved ({space.num_tokens} SID, "
        f"{len(buckets)} of numbers: {', '.join(edges) or 'none'}); {_cost(words)}"
    )


def _features(params: VocabularyParams) -> dict[str, Any]:
    """What vocabulary.json says of places and features of a prompt; nothing if it has none, as in older ones."""
    places = {"item_places": True} if params.item_places else {}
    if not params.history_features and not params.context_features:
        return places
    return {
        **places,
        "history_features": list(params.history_features),
        "context_features": list(params.context_features),
        "max_title_tokens": params.max_title_tokens,
    }


def _cost(words: Vocabulary) -> str:
    """How long a prompt can be, with and without its features."""
    shape = words.shape
    if shape.item_places:
        return f"a prompt of {shape.max_history} items takes at most {most_places(words)} places"
    bare = most_tokens(replace(words, shape=replace(shape, history_features=(), context_features=())))
    told = f"a prompt of {shape.max_history} items takes at most {bare} tokens"
    if most_tokens(words) == bare:
        return told
    parts = (("history", shape.history_features), ("context", shape.context_features))
    names = "; ".join(f"{', '.join(names)} of the {part}" for part, names in parts if names)
    return f"{told}, {most_tokens(words)} with its features ({names})"


def _text_tokenizer(
    params: VocabularyParams, catalog: Catalog, profile_columns: Sequence[str]
) -> tuple[Any, np.ndarray | None]:
    """The tokenizer of text, and the ids that its tokens had in a pre-trained one that was trimmed."""
    if params.text_model is None:
        return train_tokenizer(_catalogue_texts(catalog, profile_columns), params.text_tokens), None
    tokenizer = load_tokenizer(params.text_model)
    if not params.trim_text:
        return tokenizer, None
    phrases = _phrases()  # as they are written, spaces at their ends too
    texts = [*_catalogue_texts(catalog, profile_columns), *phrases, *_general_texts(params.general_text)]
    trimmed, rows = trim_tokenizer(tokenizer, texts)
    say(f"vocabulary: {len(rows)} of {len(tokenizer)} text tokens are needed")
    return trimmed, rows


def _general_texts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"vocabulary.general_text {path}: no readable UTF-8 text ({error}); mend it or null") from None
    return [text for line in lines if (text := clean_text(line, 4096))]


def _check(params: VocabularyParams) -> None:
    if "history" not in params.template or len(set(params.template)) != len(params.template):
        raise InputError(
            f"vocabulary.template is {list(params.template)}; it must name history, and no segment twice, "
            "out of history, user, context"
        )
    for name in ("history_features", "context_features"):
        given = list(getattr(params, name))
        if len(set(given)) != len(given):
            raise InputError(f"vocabulary.{name} is {given}; name each feature once")
    if params.context_features and "context" not in params.template:
        raise InputError(
            f"vocabulary.context_features is {list(params.context_features)}, but template {list(params.template)} has "
            "no context; add it, or give [] as context_features"
        )
    if params.context_features and params.item_places:
        raise InputError(
            f"vocabulary.context_features is {list(params.context_features)} with item_places, where the context is an "
            "event like any other; give [] as context_features, or false as item_places"
        )
    if params.text_model is None and params.text_tokens < 256:
        raise InputError(f"vocabulary.text_tokens is {params.text_tokens}; a byte-level tokenizer needs 256 or more")
    if params.text_model is None and params.trim_text:
        raise InputError("vocabulary.trim_text is true without a text_model; name one, or set it to false")
    if params.num_gaps < 1 or params.max_history < 1:
        raise InputError(
            f"vocabulary: num_gaps {params.num_gaps} and max_history {params.max_history} must be at least 1"
        )


def _profile_columns(catalog: Catalog, max_values: int) -> list[str]:
    names = sorted(set(catalog.users.column_names) - {"user_id"})
    return [name for name in names if pc.count_distinct(catalog.users.column(name)).as_py() <= max_values]


def _phrases() -> list[str]:
    return [part for phrase in PHRASES.values() for part in phrase]


def _catalogue_texts(catalog: Catalog, profile_columns: Sequence[str]) -> list[str]:
    """Every text that the model will read: phrases, describing columns, profile values; cleaned, without empty ones."""
    texts = _phrases()
    for name in DESCRIBING:
        for value in catalog.items.column(name).to_pylist():
            texts.append(", ".join(value) if isinstance(value, list) else value or "")
    texts += {profile_text(row, profile_columns) for row in read_profiles(catalog).values()}
    return sorted(filter(None, (clean_text(text, 4096) for text in texts)))


if __name__ == "__main__":
    main(run, section="vocabulary")
