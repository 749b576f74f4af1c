"""Examples of fine-tuning (PLUM 2.3, eq. 3): a window of a user's history as one tree of tokens.

The trunk is the history; where a new day begins a branch leaves it that holds the rest of the prompt and then, each as
a branch of its own, the items of that day (and of the days after it, with `target_days` above 1). The path from the
root to a target is token by token what `render_prompt` gives for a request at that moment.

What the targets are stands in `targets.py`. What was not drawn as one still stands in the trunk: it tells something
about the user. A day without any target drawn has no branch, a user without any no window, so nothing is computed for
them.

A branch of a day may hold further targets, items that a training-free teacher would recommend
(models/corpus/teacher.py).

The daily increment trains on the windows of the last `recent_days` and on a share of the others. What is new and what
is older never share a window: in a `recent` one only events of those days are targets, and the older days of the same
user are windows of their own, replayed by chance like everybody's. So an increment sees every new target once and
every older one with the same probability, however often its user comes back.
"""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from models.corpus.examples import Examples, ExamplesBuilder
from models.corpus.material import CorpusParams, Material
from models.corpus.targets import Targets
from models.language.facts import TEXTS, EventTokens, Feature, ItemFacts, asked_texts
from models.language.prompt import (
    Profile,
    most_context_tokens,
    most_event_tokens,
    render_context,
    render_head,
    render_tail,
    tell_events,
)
from plumline.errors import InputError


@dataclass(frozen=True)
class Window:
    """One example. The trunk holds the events [start, stop).

    branches: events at which branches leave, ascending, at most `stop`; the event there is a target of the branch.
    recent: whether its targets are those of the recent days, or those of the days before.
    """

    start: int
    stop: int
    branches: tuple[int, ...]
    recent: bool


def sft_examples(params: CorpusParams, material: Material, last_day: int, rng: np.random.Generator) -> Examples:
    """Windows of all users as trees; `kind` by what its targets are, `weight` by the last one's age.

    last_day: as_of, in days since 1970. Raises InputError if no event has a reward, or max_tokens holds no prompt.
    """
    words, events = material.words, material.events
    writer = _TreeWriter(params, material, last_day, rng)
    builder = ExamplesBuilder()
    for user, user_id in enumerate(tqdm(events.user_ids, desc="corpus: windows", unit=" users", mininterval=1.0)):
        profile = Profile.render(words, material.profiles.get(user_id, {}))
        for window in writer.windows(int(events.user_starts[user]), int(events.user_starts[user + 1]), profile):
            age = last_day - int(writer.targets.days[window.branches[-1]])
            kind = "recent" if window.recent else "replay" if rng.random() < params.replay_share else "older"
            builder.add_tree(*writer.tree(window, profile), kind, 0.5 ** (age / params.half_life_days))
    return builder.build()


class _TreeWriter:
    """Cuts histories into windows and writes a window as tokens, spans and targets."""

    def __init__(self, params: CorpusParams, material: Material, last_day: int, rng: np.random.Generator) -> None:
        self.params, self.rng = params, rng
        self.words, self.events = material.words, material.events
        self.facts = item_facts(material)
        self.stream = prompt_stream(material, self.facts)
        self.levels = self.words.space.num_levels
        self.longest = self.words.shape.max_history
        self.sid_ids = self.words.sid_token_ids(material.sids.codes).astype(np.int32)
        self.targets = targets = Targets(params, material, last_day, rng)
        self.trunk_loss = np.repeat(targets.drawn, np.diff(self.stream.starts)) if params.trunk_loss else None
        template = self.words.shape.template
        # A context item that stands before the history is another one for every branch: no trunk can be shared.
        self.shared = "context" not in template or template.index("context") > template.index("history")
        needed = (
            2 * self._frame(self.words.shape.max_profile_tokens)
            + self.longest * most_event_tokens(self.words)
            + (max(params.day_targets, 1) + params.taught_targets) * self.levels
        )
        if params.max_tokens < needed:
            raise InputError(
                f"corpus.max_tokens {params.max_tokens} cannot hold a prompt of {self.longest} items and its targets; "
                f"give {needed}, or lower vocabulary.max_history or corpus.day_targets"
                + (", or name fewer vocabulary.history_features" if self.words.shape.history_features else "")
            )

    def windows(self, begin: int, end: int, profile: Profile) -> list[Window]:
        """Windows of one user's events [begin, end), latest first.

        Every new day with a target is a branch of exactly one window, of the latest that can hold it; the very first
        day is one with an empty history.
        """
        pending = (begin + 1 + np.flatnonzero(self.targets.begins_day[begin + 1 : end])).tolist()
        if not pending:  # one day is all there is: its last item, given those before it
            pending = (begin + 1 + np.flatnonzero(self.targets.drawn[begin + 1 : end])[-1:]).tolist()
        pending = [event for event in pending if self.targets.num_drawn(event)]
        recent = begin + int(np.searchsorted(self.events.timestamps[begin:end], self.targets.first_recent))
        new = [event for event in pending if event >= recent]
        old = pending[: len(pending) - len(new)]
        return self._cut(begin, recent, end, new, profile) + self._cut(begin, begin, recent, old, profile)

    def _cut(self, begin: int, first: int, end: int, pending: list[int], profile: Profile) -> list[Window]:
        """Windows whose targets lie in [first, end), for the branches `pending`; histories begin with `begin`."""
        found: list[Window] = []
        frame = self._frame(len(profile.token_ids))
        recent = first < end and bool(self.events.timestamps[first] >= self.targets.first_recent)
        while pending:
            stop = pending[-1]
            if recent and not found and self.shared and self.trunk_loss is not None:
                # No later window has the newest day in its trunk, so its items would be targets of a few branches only.
                stop = min(int(self.targets.day_stop[stop]), stop + self.longest // 2)
            start = max(begin, stop - self.longest)
            last_token = self.stream.starts[min(stop + 1, len(self.stream.starts) - 1)]
            room = self.params.max_tokens - frame - int(last_token - self.stream.starts[start])
            branches: list[int] = []
            while pending and pending[-1] > start and (self.shared or not branches):
                cost = frame + self.levels * self.targets.most(pending[-1])
                if branches and cost > room:
                    break
                room -= cost
                branches.append(pending.pop())
            extra = [begin] if start == begin == first else []
            low, high = max(start + 1, first), min(stop + 1, end)
            within = self.rng.integers(low, high, self.params.session_branches if low < high else 0)
            extra += within[~self.targets.begins_day[within]].tolist()
            for event in extra if self.shared else []:
                cost = frame + self.levels * self.targets.most(event)
                if event not in branches and cost <= room and self.targets.num_drawn(event):
                    room -= cost
                    branches.append(event)
            found.append(Window(start, stop, tuple(sorted(branches)), recent))
        return found

    def tree(self, window: Window, profile: Profile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, spans and targets of a window, each (t,)."""
        words, stream = self.words, self.stream
        context = [] if self.shared else self._context(window.branches[0] - 1)
        head = np.array(render_head(words, profile, context), dtype=np.int32)
        tokens, span, loss = [head], [np.zeros(len(head), dtype=np.int32)], [np.zeros(len(head), dtype=np.int8)]
        at = int(stream.sids[window.start])  # a first item has no gap before it
        times = self.events.timestamps[window.start : window.stop]
        first_target = int(np.searchsorted(times, self.targets.first_recent))
        first_target = int(stream.starts[window.start + first_target]) if window.recent else 0

        def grow(until: int) -> None:
            trunk = stream.tokens[at:until]
            targets = np.zeros(len(trunk), dtype=np.int8)
            if self.trunk_loss is not None:
                targets += self.trunk_loss[at:until] & (trunk >= words.sid_base)
                targets[: max(0, first_target - at)] = 0
            tokens.append(trunk)
            span.append(np.zeros(len(trunk), dtype=np.int32))
            loss.append(targets)

        for event in window.branches:
            until = int(stream.sids[event])  # the gap before the target belongs to the trunk
            grow(until)
            at = until
            context = self._context(event - 1) if event > window.start else []
            tail = np.array(render_tail(words, profile, context), dtype=np.int32)
            rows = self.targets.rows(event)
            items = self.sid_ids[rows].reshape(-1)
            tokens += [tail, items]
            span.append(np.arange(len(tail) + len(items), len(items), -1, dtype=np.int32))
            span.append(np.tile(np.arange(self.levels, 0, -1, dtype=np.int32), len(items) // self.levels))
            loss += [np.zeros(len(tail), dtype=np.int8), np.ones(len(items), dtype=np.int8)]
        grow(int(stream.starts[window.stop]))  # nothing is left where the last branch leaves at `stop`
        joined = np.concatenate(span)
        trunk_place = joined == 0
        joined[trunk_place] = len(joined) - np.flatnonzero(trunk_place)
        return np.concatenate(tokens), joined, np.concatenate(loss)

    def _frame(self, num_profile_tokens: int) -> int:
        """Most tokens of a prompt beside its history: <user> …, <context> … sid, two more."""
        return 4 + num_profile_tokens + most_context_tokens(self.words)

    def _context(self, event: int) -> list[int]:
        """The context segment of a request whose most recent event is this one."""
        row = int(self.events.rows[event])
        return render_context(self.words, self.sid_ids[row].tolist(), self.facts[row] if self.facts else ItemFacts())


def item_facts(material: Material) -> list[ItemFacts]:
    """Of each row of the SID table; empty if prompts ask for no text."""
    rows = range(len(material.sids.item_ids))
    texts = [[material.texts.get(name, {}).get(row) for row in rows] for name in TEXTS]
    return ItemFacts.render(material.words, *texts) if asked_texts(material.words) else []


def prompt_stream(material: Material, facts: list[ItemFacts]) -> EventTokens:
    """Tokens of all events as prompts tell them."""
    channels = Feature.of([one.channel for one in facts])
    if facts:
        channels = channels.take(material.events.rows)
    return tell_events(material.words, material.stream, channels, material.events.numbers)
