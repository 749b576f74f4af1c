"""Text and SIDs in one prompt, completed word by word: the in-context use of a model that was taught both (PLUM A.2).

Not a stage: `plumline ask` calls it. A prompt is written as SIDs are printed elsewhere,

    Item <a_3><b_1><c_0> is from: maker 1 Item {item:i07} is from:

where {item:ID} stands for the SID of an item, and the first codes of a SID may stand alone (<a_3>). What is not a SID
is text from outside and becomes no reserved token, whatever it spells. torch is imported inside the functions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.language.words import Vocabulary
from plumline.errors import InputError

_SPECIAL = re.compile(r"\{item:(?P<item>[^{}]*)\}|(?P<sid>(?:<[a-z]_\d+>)+)")
_CODE = re.compile(r"<([a-z])_(\d+)>")
_MOST_TOKENS = 1 << 16  # nothing is clipped silently: `complete` refuses what the model cannot read


@dataclass(frozen=True)
class Part:
    """A stretch of a completion. text: as it is printed. codes: of a whole SID, else None."""

    text: str
    codes: tuple[int, ...] | None = None


def encode_prompt(words: Vocabulary, prompt: str, codes_of: Mapping[str, Sequence[int]]) -> list[int]:
    """Token ids of a prompt, <bos> first. codes_of: item id → codes.

    Raises InputError for an item without a SID, for codes that the space does not have, and for codes out of order.
    """
    ids, end = [words.control["<bos>"]], 0
    for found in _SPECIAL.finditer(prompt):
        ids += _encode_text(words, prompt[end : found.start()])
        end = found.end()
        if found["sid"] is not None:
            ids += _encode_codes(words, found["sid"])
        elif found["item"] in codes_of:
            ids += words.sid_token_ids(np.array(codes_of[found["item"]])).tolist()
        else:
            raise InputError(f"{found[0]}: no item of this release has that id and a SID; give the id as it was landed")
    return ids + _encode_text(words, prompt[end:])


def _encode_codes(words: Vocabulary, run: str) -> list[int]:
    """SIDs in a row, the last code of each may be missing from some level on."""
    space, last = words.space, -1
    ids: list[int] = []
    for found in _CODE.finditer(run):
        level, code = ord(found[1]) - ord("a"), int(found[2])
        if level >= space.num_levels or code >= space.sizes[level] or space.token(level, code) != found[0]:
            example = space.format([size - 1 for size in space.sizes])
            raise InputError(f"{found[0]} in {run}: this release has no such code; its last SID is {example}")
        if level not in (0, last + 1):
            raise InputError(f"{found[0]} in {run}: a SID begins with <a_…> and goes on level by level; mend its order")
        ids.append(words.sid_base + space.offsets[level] + code)
        last = level
    return ids


def _encode_text(words: Vocabulary, text: str) -> list[int]:
    """Text from outside; a space between it and a SID is kept: the examples have it, and words differ by it."""
    return words.encode_untrusted(text, _MOST_TOKENS, keep_edges=True)


def complete(model: Any, words: Vocabulary, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The most likely token, again and again, until <eos> or max_tokens. Returns the new ids, <eos> left out.

    Raises InputError if the prompt and its completion are longer than the model can read.
    """
    import torch
    from transformers import GenerationConfig

    longest = int(model.config.max_position_embeddings)
    if len(prompt) + max_tokens > longest:
        raise InputError(
            f"{len(prompt)} tokens of prompt and {max_tokens} of completion; the model reads {longest} together: "
            "shorten the prompt or lower --max-tokens"
        )
    eos, pad = words.control["<eos>"], words.control["<pad>"]
    ids = torch.tensor([list(prompt)], device=model.device)
    wanted = GenerationConfig(do_sample=False, max_new_tokens=max_tokens, eos_token_id=eos, pad_token_id=pad)
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=wanted)
    new: list[int] = found[0, len(prompt) :].tolist()
    return new[:-1] if new[-1:] == [eos] else new


def split_completion(words: Vocabulary, ids: Sequence[int]) -> list[Part]:
    """Token ids as parts to print: text, whole SIDs each by itself, other reserved tokens as they are spelt."""
    parts: list[Part] = []
    text: list[int] = []
    place = 0

    def flush() -> None:
        if text:
            decoded = words.tokenizer.decode(text)
            parts.append(Part("".join(c if c.isprintable() else " " for c in decoded)))  # it may hold half a character
            text.clear()

    while place < len(ids):
        if (codes := _codes_at(words, ids[place : place + words.space.num_levels])) is not None:
            flush()
            parts.append(Part(words.space.format(codes), codes))
            place += len(codes)
            continue
        if ids[place] < words.reserved_base:
            text.append(ids[place])
        else:
            flush()
            parts.append(Part(str(words.tokenizer.convert_ids_to_tokens(ids[place]))))
        place += 1
    flush()
    return parts


def _codes_at(words: Vocabulary, ids: Sequence[int]) -> tuple[int, ...] | None:
    """Codes of L token ids if they are a SID."""
    if len(ids) < words.space.num_levels:
        return None
    codes = words.space.codes(np.array(ids), words.sid_base)
    return tuple(codes.tolist()) if words.space.contains(codes) else None
