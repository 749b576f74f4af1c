"""The tokenizer under the vocabulary: trained on the catalogue, or a pre-trained one, whole or trimmed to what is read.

Not a stage: `vocabulary` calls it. transformers is imported inside the functions.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plumline.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHUNK = 10_000
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def train_tokenizer(texts: Sequence[str], text_tokens: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of at most `text_tokens` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=text_tokens,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def load_tokenizer(text_model: str) -> Any:
    """The fast tokenizer of a pre-trained model. Raises InputError if there is none."""
    from transformers import AutoTokenizer

    from models.language.pretrained import open_source

    source = open_source(text_model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, trust_remote_code=False, **source.options)
    except (OSError, ValueError) as error:
        raise InputError(f"vocabulary.text_model {text_model}: {' '.join(str(error).split())[:300]}") from None
    if not tokenizer.is_fast:
        raise InputError(
            f"vocabulary.text_model {text_model}: it has no fast tokenizer (tokenizer.json); choose another"
        )
    return tokenizer


def trim_tokenizer(tokenizer: Any, texts: Sequence[str]) -> tuple["PreTrainedTokenizerFast", np.ndarray]:
    """Leave out the tokens that no text needs.

    Returns the tokenizer and the old ids of its tokens, (n,) int64 ascending: new id i was old id kept[i]. Kept are the
    tokens of the texts, every token of one character or byte (so that any other text can be spelt), added tokens, and
    the parts of every merge that makes a kept token. A merge that a text goes through thus stays with its rank, and the
    text is encoded as before; a merge that is gone was never taken. Raises InputError if the tokenizer is no BPE.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    model = raw["model"]
    if model["type"] != "BPE":
        raise InputError(
            f"vocabulary.trim_text: the text model's tokenizer is {model['type']}, not BPE; set it to false"
        )
    ids: dict[str, int] = model["vocab"]
    merges = [_pair(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    kept = _needed(raw, texts) | {token for token in ids if len(token) == 1 or _is_byte(token)}
    if model.get("unk_token"):
        kept.add(model["unk_token"])
    kept = _with_parts(kept, merges, model.get("continuing_subword_prefix") or "")
    old = sorted({ids[token] for token in kept & ids.keys()} | {added["id"] for added in raw["added_tokens"]})
    new = {before: after for after, before in enumerate(old)}
    model["vocab"] = {token: new[number] for token, number in ids.items() if number in new}
    prefix = model.get("continuing_subword_prefix") or ""
    model["merges"] = [list(merge) for merge in merges if _made(merge, prefix) in kept]
    for added in raw["added_tokens"]:
        added["id"] = new[added["id"]]
    raw["post_processor"] = None  # it would set special tokens by their old ids; prompts set their own
    named = {name: getattr(tokenizer, name) for name in _SPECIAL if getattr(tokenizer, name) is not None}
    trimmed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)), clean_up_tokenization_spaces=False, **named
    )
    assert len(trimmed) == len(old), "a special token was not in the tokenizer"
    return trimmed, np.array(old, dtype=np.int64)


def add_special(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Register tokens as special ones, at the end, in this order."""
    from tokenizers import AddedToken

    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids(list(tokens)) == list(range(first, first + len(tokens)))


def _needed(raw: dict[str, Any], texts: Sequence[str]) -> set[str]:
    """Tokens of texts, special tokens in them split as `Vocabulary` splits them."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(json.dumps(raw))
    encoder.encode_special_tokens = True
    encoder.no_padding()
    encoder.no_truncation()
    found: set[int] = set()
    tokens = {number: token for token, number in encoder.get_vocab().items()}
    for start in range(0, len(texts), _CHUNK):
        for encoding in encoder.encode_batch_fast(texts[start : start + _CHUNK], add_special_tokens=False):
            found.update(encoding.ids)
    return {tokens[number] for number in found}


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _pair(parts: Sequence[str]) -> tuple[str, str]:
    left, right = parts
    return left, right


def _made(merge: tuple[str, str], prefix: str) -> str:
    """The token that a merge makes."""
    return merge[0] + merge[1][len(prefix) :]


def _with_parts(tokens: set[str], merges: Sequence[tuple[str, str]], prefix: str) -> set[str]:
    """Tokens, and both parts of every merge that makes one of them, and theirs."""
    makers: dict[str, list[tuple[str, str]]] = {}
    for merge in merges:
        makers.setdefault(_made(merge, prefix), []).append(merge)
    found, queue = set(tokens), list(tokens)
    while queue:
        for merge in makers.get(queue.pop(), ()):
            queue += set(merge) - found
            found |= set(merge)
    return found
