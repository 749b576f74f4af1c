"""The one place that renders a request: training, scoring and serving call it.

    <bos> <history> sid sid <gap> sid … [<gap>] <user> country France <context> sid <next>   → the target's L tokens

The template is the order of the three segments (PLUM 2.3 and Figure 2), of which all but the history may be left out:

    vocabulary: {template: [history, user, context]}       in the recipe; this is the default

It is stored with the vocabulary, so a release serves what it was trained on, whatever the recipe says by then. What a
segment looks like stands here and nowhere else: no other module writes <history>, <user>, <context> or <next> (a test
holds it). `models/corpus/sft_examples.py` puts the same parts (head, events, tail) together as trees,
`models/retrieval/retriever.py` asks for a whole prompt.

A gap token stands only before an event that came an hour or more after the one before it, so that the items of one
basket cost no extra tokens; the last one tells how long after its last event the user is back. A segment with nothing
to say is left out.

The last gap is the true one in training, up to noon of the day in the stage `scores`, and in the service up to the
moment of the request in whole hours (`RankedRetriever.rank_time`), which at noon of that day is the same. A history
without times, which a request may bring, has no gaps but a last one of a day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.language.words import Vocabulary, profile_text

MS_PER_HOUR = 3_600_000
HOURS_TO_NEXT_DAY = 24.0


@dataclass(frozen=True)
class Profile:
    """A user's profile features as token ids; none if the user is unknown."""

    token_ids: tuple[int, ...]

    @classmethod
    def render(cls, vocabulary: Vocabulary, profile: Mapping[str, str | None]) -> "Profile":
        """Encode the columns that the vocabulary knows as features; they are text from outside."""
        text = profile_text(profile, vocabulary.shape.profile_columns)
        return cls(tuple(vocabulary.encode_untrusted(text, vocabulary.shape.max_profile_tokens)) if text else ())


@dataclass(frozen=True)
class EventTokens:
    """Token ids of events one after the other.

    tokens: (T,) int32. starts: (n + 1,) int64, first token of each event (its gap token where it has one) and the end.
    """

    tokens: np.ndarray
    starts: np.ndarray


def render_prompt(
    vocabulary: Vocabulary,
    history: Sequence[tuple[Sequence[int], int]],
    profile: Mapping[str, str | None],
    context: Sequence[int] | None = None,
    at_ms: int | None = None,
) -> list[int]:
    """Token ids of a request, ending where the target's first token is to come.

    history: (codes, epoch milliseconds) of known items, oldest first; only the last max_history count.
    profile: column → value. context: codes of the item the user looks at; None takes the most recent one.
    at_ms: when the user asks, epoch milliseconds; None means a day after the last event.
    """
    history = history[-vocabulary.shape.max_history :]
    codes = np.array([row for row, _ in history], dtype=np.int64).reshape(-1, vocabulary.space.num_levels)
    timestamps = np.array([time for _, time in history], dtype=np.int64)
    if context is None and len(history):
        context = codes[-1]
    hours = (HOURS_TO_NEXT_DAY if at_ms is None else (at_ms - timestamps[-1]) / MS_PER_HOUR) if len(history) else 0.0
    features = Profile.render(vocabulary, profile)
    sid = vocabulary.sid_token_ids(np.asarray(context)).tolist() if context is not None else []
    return [
        *render_head(vocabulary, features, sid),
        *render_events(vocabulary, codes, timestamps).tokens.tolist(),
        *render_gap(vocabulary, hours),
        *render_tail(vocabulary, features, sid),
    ]


def render_head(vocabulary: Vocabulary, profile: Profile, context_sid: Sequence[int]) -> list[int]:
    """What stands before the first event of the history. context_sid: L token ids, or [] for none."""
    template = vocabulary.shape.template
    before = template[: template.index("history")]
    return [
        vocabulary.control["<bos>"],
        *_segments(vocabulary, before, profile, context_sid),
        vocabulary.control["<history>"],
    ]


def render_tail(vocabulary: Vocabulary, profile: Profile, context_sid: Sequence[int]) -> list[int]:
    """What stands behind the history (and its last gap token), through <next>."""
    template = vocabulary.shape.template
    after = template[template.index("history") + 1 :]
    return [*_segments(vocabulary, after, profile, context_sid), vocabulary.control["<next>"]]


def render_gap(vocabulary: Vocabulary, hours: float) -> list[int]:
    """[the gap token] of a pause of an hour or more, else []."""
    return [vocabulary.gap_token(hours)] if hours >= 1.0 else []


def render_events(
    vocabulary: Vocabulary, codes: np.ndarray, timestamps: np.ndarray, first: np.ndarray | None = None
) -> EventTokens:
    """Events as tokens, gap tokens between them.

    codes: (n, L). timestamps: (n,) epoch milliseconds, oldest first. first: (n,) bool, events that begin a history and
    so have no gap (default: the first one only); with it many histories are rendered at once.
    """
    levels = vocabulary.space.num_levels
    if len(codes) == 0:
        return EventTokens(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
    hours = np.diff(timestamps, prepend=timestamps[:1]) / MS_PER_HOUR
    has_gap = hours >= 1.0
    has_gap[0] = False
    if first is not None:
        has_gap &= ~first
    starts = np.concatenate([[0], np.cumsum(levels + has_gap)]).astype(np.int64)
    tokens = np.empty(starts[-1], dtype=np.int32)
    tokens[starts[:-1][has_gap]] = vocabulary.gap_tokens(hours[has_gap])
    sid_starts = starts[:-1] + has_gap
    tokens[sid_starts[:, None] + np.arange(levels)] = vocabulary.sid_token_ids(codes)
    return EventTokens(tokens, starts)


def _segments(vocabulary: Vocabulary, names: Sequence[str], profile: Profile, context_sid: Sequence[int]) -> list[int]:
    tokens: list[int] = []
    for name in names:
        if name == "user" and profile.token_ids:
            tokens += [vocabulary.control["<user>"], *profile.token_ids]
        if name == "context" and len(context_sid):
            tokens += [vocabulary.control["<context>"], *context_sid]
    return tokens
