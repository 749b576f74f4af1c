"""A request in places: an event of the history takes one place of the model's input, not one a token.

    <bos> | <user> | country | France | <history> | gap sid sid sid price | sid sid sid | …      and the question: gap

A place is a bag of tokens whose embeddings the model adds up (Token Factory's soft tokens; seed 000): a token of the
profile is a place of its own, an event one of its gap, its SID and its features. What the model puts out at the last
place, and the embedding of the question (the gap until the user asks, if it is an hour or more), is what the SID head
reads (`models/language/item_model.py`). The item that a user looks at is an event that comes last and has no gap.

`vocabulary: {item_places: true}` in the recipe; the tokens are those of `models/language/prompt.py`, and so are their
order and the moment that is asked for. The template says which of user and context there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from models.language.facts import EventTokens, Feature, ItemFacts
from models.language.prompt import (
    HOURS_TO_NEXT_DAY,
    MS_PER_HOUR,
    Profile,
    render_events,
    render_gap,
    render_places_head,
    tell_events,
)
from models.language.words import Vocabulary
from plumline.stage import Params


class HeadParams(Params):
    """What a model that reads one place an item has beside the language model."""

    intermediate: int = Field(default=256, ge=1)
    """Width of the blocks of the SID head."""
    prefix_rows: int = Field(default=16384, ge=0)
    """Rows of the table of the first two codes of a SID together, fewer where there are fewer pairs; 0: no table."""


@dataclass(frozen=True)
class Places:
    """A request. token_ids: of all places, then of the question. sizes: tokens of each place. question: tokens of the
    question, 0 or 1. Its length is the number of its places."""

    token_ids: list[int]
    sizes: list[int]
    question: int

    def __len__(self) -> int:
        return len(self.sizes)

    def bags(self) -> Iterator[list[int]]:
        """The tokens of each place."""
        at = 0
        for size in self.sizes:
            yield self.token_ids[at : at + size]
            at += size

    @property
    def asked(self) -> int | None:
        """The token of the question, if there is one."""
        return self.token_ids[-1] if self.question else None


def render_places(
    vocabulary: Vocabulary,
    history: Sequence[tuple[Sequence[int], int]],
    profile: Mapping[str, str | None],
    context: Sequence[int] | None = None,
    at_ms: int | None = None,
    *,
    facts: Sequence[ItemFacts] = (),
    numbers: Mapping[str, Sequence[float | None]] | None = None,
    context_facts: ItemFacts | None = None,
) -> Places:
    """A request. Arguments as of `models.language.prompt.render_prompt`.

    A context that is the most recent item is that event itself.
    """
    most = vocabulary.shape.max_history
    codes = np.array([row for row, _ in history], dtype=np.int64).reshape(-1, vocabulary.space.num_levels)
    timestamps = np.array([time for _, time in history], dtype=np.int64)
    known = {name: np.array(values, dtype=np.float64) for name, values in (numbers or {}).items()}
    hours = (HOURS_TO_NEXT_DAY if at_ms is None else (at_ms - timestamps[-1]) / MS_PER_HOUR) if len(history) else 0.0
    told = list(facts)
    looked_at = context is not None and not (len(codes) and np.array_equal(codes[-1], context))
    if looked_at and "context" in vocabulary.shape.template:
        codes = np.concatenate([codes, np.array([context], dtype=np.int64)])
        timestamps = np.append(timestamps, timestamps[-1:] if len(timestamps) else 0)
        known = {name: np.append(values, np.nan) for name, values in known.items()}
        if told or not len(history):
            told = [*told, context_facts or ItemFacts()]
    codes, timestamps, told = codes[-most:], timestamps[-most:], told[-most:]
    events = tell_events(
        vocabulary,
        render_events(vocabulary, codes, timestamps),
        Feature.of([one.channel for one in told]),
        {name: values[-most:] for name, values in known.items()},
    )
    head = render_places_head(vocabulary, Profile.render(vocabulary, profile))
    question = render_gap(vocabulary, hours)
    return Places(
        [*head, *events.tokens.tolist(), *question], [1] * len(head) + event_sizes(events).tolist(), len(question)
    )


def event_sizes(events: EventTokens) -> np.ndarray:
    """Tokens of each event's place, (n,) int64."""
    return np.diff(events.starts)


def most_places(vocabulary: Vocabulary) -> int:
    """Most places of a request."""
    shape = vocabulary.shape
    user = 1 + shape.max_profile_tokens if "user" in shape.template and shape.profile_columns else 0
    return 2 + user + shape.max_history
