"""The one place that renders a request: training, scoring and serving call it.

    <bos> <history> sid sid <gap> sid … [<gap>] <user> country France <context> sid <next>   → the target's L tokens

The template is the order of the three segments (PLUM 2.3 and Figure 2), of which all but the history may be left out:

    vocabulary: {template: [history, user, context]}       in the recipe; this is the default

It is stored with the vocabulary, so a release serves what it was trained on, whatever the recipe says by then. What a
segment looks like stands here and nowhere else: no other module writes <history>, <user>, <context> or <next> (a test
holds it). `models/corpus/sft_examples.py` puts the same parts (head, events, tail) together as trees,
`models/retrieval/retriever.py` asks for a whole prompt.

A recipe can say more of each event and of the context item, as Figure 2 does; none of it is on by default:

    vocabulary: {history_features: [channel, watch_ratio], context_features: [title]}
    … <gap> sid channel <watch_ratio_3> … <context> title sid <next>

What is not known of an event (a request may name ids alone) leaves no token. Texts are cut to a few tokens and never
yield a reserved one. `models/language/facts.py` makes these tokens, for continued pre-training too.

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

from models.language.facts import CHANNEL_TOKENS, EventTokens, Feature, ItemFacts, add_features
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


def render_prompt(
    vocabulary: Vocabulary,
    history: Sequence[tuple[Sequence[int], int]],
    profile: Mapping[str, str | None],
    context: Sequence[int] | None = None,
    at_ms: int | None = None,
    *,
    facts: Sequence[ItemFacts] = (),
    numbers: Mapping[str, Sequence[float | None]] | None = None,
    context_facts: ItemFacts | None = None,
) -> list[int]:
    """Token ids of a request, ending where the target's first token is to come.

    history: (codes, epoch milliseconds) of known items, oldest first; only the last max_history count.
    profile: column → value. context: codes of the item the user looks at; None takes the most recent one.
    at_ms: when the user asks, epoch milliseconds; None means a day after the last event.
    facts: of each item of the history; empty: nothing is known of any. numbers: numeric column of events → value of
    each event of the history, None or NaN where it is not known. context_facts: of the context; without codes of a
    context it is the most recent item's.
    """
    most = vocabulary.shape.max_history
    history, facts = history[-most:], facts[-most:]
    codes = np.array([row for row, _ in history], dtype=np.int64).reshape(-1, vocabulary.space.num_levels)
    timestamps = np.array([time for _, time in history], dtype=np.int64)
    if context is None and len(history):
        context, context_facts = codes[-1], facts[-1] if facts else None
    hours = (HOURS_TO_NEXT_DAY if at_ms is None else (at_ms - timestamps[-1]) / MS_PER_HOUR) if len(history) else 0.0
    features = Profile.render(vocabulary, profile)
    sid = vocabulary.sid_token_ids(np.asarray(context)).tolist() if context is not None else []
    segment = render_context(vocabulary, sid, context_facts or ItemFacts())
    known = {name: np.array(values[-most:], dtype=np.float64) for name, values in (numbers or {}).items()}
    events = render_events(vocabulary, codes, timestamps)
    return [
        *render_head(vocabulary, features, segment),
        *tell_events(vocabulary, events, Feature.of([one.channel for one in facts]), known).tokens.tolist(),
        *render_gap(vocabulary, hours),
        *render_tail(vocabulary, features, segment),
    ]


def render_head(vocabulary: Vocabulary, profile: Profile, context: Sequence[int]) -> list[int]:
    """What stands before the first event of the history. context: of `render_context`, or [] for none."""
    template = vocabulary.shape.template
    before = template[: template.index("history")]
    return [
        vocabulary.control["<bos>"],
        *_segments(vocabulary, before, profile, context),
        vocabulary.control["<history>"],
    ]


def render_places_head(vocabulary: Vocabulary, profile: Profile) -> list[int]:
    """What stands before the first event where an event is one place (`models/language/places.py`), a place each.

    It ends with <history>, where a user without one is asked.
    """
    before = ["user"] if "user" in vocabulary.shape.template else []
    segment = _segments(vocabulary, before, profile, [])
    return [vocabulary.control["<bos>"], *segment, vocabulary.control["<history>"]]


def render_tail(vocabulary: Vocabulary, profile: Profile, context: Sequence[int]) -> list[int]:
    """What stands behind the history (and its last gap token), through <next>. context: of `render_context`."""
    template = vocabulary.shape.template
    after = template[template.index("history") + 1 :]
    return [*_segments(vocabulary, after, profile, context), vocabulary.control["<next>"]]


def render_context(vocabulary: Vocabulary, sid: Sequence[int], facts: ItemFacts) -> list[int]:
    """What stands in the segment of the context: its features, then its SID. sid: L token ids, or [] for none."""
    if not len(sid):
        return []
    text = {"channel": facts.channel, "title": facts.title}
    return [*(token for name in vocabulary.shape.context_features for token in text[name]), *sid]


def render_gap(vocabulary: Vocabulary, hours: float) -> list[int]:
    """[the gap token] of a pause of an hour or more, else []."""
    return [vocabulary.gap_token(hours)] if hours >= 1.0 else []


def render_events(
    vocabulary: Vocabulary, codes: np.ndarray, timestamps: np.ndarray, first: np.ndarray | None = None
) -> EventTokens:
    """Events as tokens, gap tokens between them, without features (`tell_events` adds them).

    codes: (n, L). timestamps: (n,) epoch milliseconds, oldest first. first: (n,) bool, events that begin a history and
    so have no gap (default: the first one only); with it many histories are rendered at once.
    """
    levels = vocabulary.space.num_levels
    if len(codes) == 0:
        return EventTokens(*(np.zeros(size, dtype) for size, dtype in ((0, np.int32), (1, np.int64), (0, np.int64))))
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
    return EventTokens(tokens, starts, sid_starts)


def tell_events(
    vocabulary: Vocabulary, events: EventTokens, channels: Feature, numbers: Mapping[str, np.ndarray]
) -> EventTokens:
    """Events with what the shape of the prompt says behind each SID; the same events if it says nothing.

    channels: of each event, or of none at all. numbers: numeric column of events → (n,) float, NaN where not known.
    """
    told = []
    for name in vocabulary.shape.history_features:
        if name == "channel" and len(channels.counts):
            told.append(channels)
        elif name in numbers:
            told.append(Feature.of_number(vocabulary, name, numbers[name]))
    return add_features(events, told) if told else events


def most_event_tokens(vocabulary: Vocabulary) -> int:
    """Most tokens of an event in the history: its gap, its SID, its features."""
    features = vocabulary.shape.history_features
    return (
        1
        + vocabulary.space.num_levels
        + CHANNEL_TOKENS * ("channel" in features)
        + sum(name in vocabulary.numbers for name in features)
    )


def most_context_tokens(vocabulary: Vocabulary) -> int:
    """Most tokens of a context item: its features and its SID."""
    most = {"channel": CHANNEL_TOKENS, "title": vocabulary.shape.max_title_tokens}
    return vocabulary.space.num_levels + sum(most[name] for name in vocabulary.shape.context_features)


def most_tokens(vocabulary: Vocabulary) -> int:
    """Most tokens of a whole prompt, of a user with max_history items."""
    shape = vocabulary.shape
    user = 1 + shape.max_profile_tokens if "user" in shape.template and shape.profile_columns else 0
    context = 1 + most_context_tokens(vocabulary) if "context" in shape.template else 0
    return 3 + user + context + shape.max_history * most_event_tokens(vocabulary)  # <bos>, <history>, <next>


def _segments(vocabulary: Vocabulary, names: Sequence[str], profile: Profile, context: Sequence[int]) -> list[int]:
    tokens: list[int] = []
    for name in names:
        if name == "user" and profile.token_ids:
            tokens += [vocabulary.control["<user>"], *profile.token_ids]
        if name == "context" and len(context):
            tokens += [vocabulary.control["<context>"], *context]
    return tokens
