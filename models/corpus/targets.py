"""What is to be predicted where: events drawn by reward, the items of a whole day at its beginning, some of a teacher.

Not a stage: the writers of fine-tuning examples (`sft_examples.py`, `sft_item_examples.py`) share it.

Equation 3 of PLUM weighs a target by its reward; as in the paper, targets are drawn by it instead and count the same in
the loss. Where a new day begins, the targets are the items of that day, not its first one alone: a day has no order for
who is asked in the morning.
"""

import numpy as np

from models.corpus.material import MS_PER_DAY, CorpusParams, Material
from models.corpus.teacher import Teacher, draw
from plumline.errors import InputError

_NOTHING = np.zeros(0, dtype=np.int64)


class Targets:
    """Targets of all events. Arrays over events, (E,).

    drawn: bool, which events are targets. days: since 1970. begins_day: bool, the first event of a user's day.
    day_stop: the first event behind it that is of another day or user. first_recent: epoch milliseconds from which on
    events are recent ones.
    """

    def __init__(self, params: CorpusParams, material: Material, last_day: int, rng: np.random.Generator) -> None:
        self.params, self.rng, self.events = params, rng, material.events
        # Which events are targets, whether of a branch or of the trunk. From a generator of its own: where all events
        # are worth the same, everything else is drawn as if there were no rewards.
        self.drawn = draw_targets(self.events.rewards, params.reward_cap, rng.spawn(1)[0])
        self.drawn_before = np.concatenate([[0], np.cumsum(self.drawn)])
        self.first_recent = (last_day - params.recent_days + 1) * MS_PER_DAY
        self.days = self.events.timestamps // MS_PER_DAY
        # Event → the first event behind it that is of another day or user.
        self.begins_day = self.events.firsts | np.diff(self.days, prepend=-1).astype(bool)
        borders = np.append(np.flatnonzero(self.begins_day), len(self.days))
        self.day_stop = np.repeat(borders[1:], np.diff(borders))
        self.target_stop = self._target_stops(last_day)
        self.taught = self._ask_teacher(material) if params.taught_targets else {}

    def _target_stops(self, last_day: int) -> np.ndarray:
        """Event → the first event of its user that is `target_days` later, or recent while it is not, or the user's
        end."""
        starts = self.events.user_starts
        user_day = np.repeat(np.arange(len(starts) - 1) << 32, np.diff(starts)) + self.days
        goal, first_recent = self.days + self.params.target_days, last_day - self.params.recent_days + 1
        goal = np.where(self.days < first_recent, np.minimum(goal, max(first_recent, 0)), goal)
        return np.searchsorted(user_day, user_day - self.days + goal)

    def _ask_teacher(self, material: Material) -> dict[int, np.ndarray]:
        """Event that begins a day → rows of items to recommend before it; nothing where the teacher knows nothing."""
        places = np.flatnonzero(self.begins_day & ~self.events.firsts)
        texts = [
            " ".join(filter(None, (column.get(row) for column in material.texts.values())))
            for row in range(len(material.sids.item_ids))
        ]
        teacher = Teacher.fit(self.events.rows, self.events.user_starts, texts, self.params.teacher)
        found = teacher.candidates(self.events.rows, self.events.user_starts, places - 1)
        drawn = draw(*found, self.params.taught_targets, self.rng.spawn(1)[0])
        return {place: np.unique(rows) for place, rows in zip(places.tolist(), drawn, strict=True) if rows[0] >= 0}

    def is_old(self, event: int) -> bool:
        """Whether an event is not a recent one."""
        return bool(self.events.timestamps[event] < self.first_recent)

    def num_drawn(self, event: int) -> int:
        """Events of a branch that are targets: of the days that begin at `event`, else the event alone."""
        until = int(self.target_stop[event]) if self._asks_for_days(event) else event + 1
        return int(self.drawn_before[until] - self.drawn_before[event])

    def most(self, event: int) -> int:
        """Most targets that `rows` gives."""
        return min(max(self.params.day_targets, 1), self.num_drawn(event)) + len(self.taught.get(event, _NOTHING))

    def rows(self, event: int) -> np.ndarray:
        """Rows of the SID table of everything that is to be predicted at an event, the teacher's last."""
        return np.concatenate([self._of_users(event), self.taught.get(event, _NOTHING)])

    def _asks_for_days(self, event: int) -> bool:
        return bool(self.begins_day[event]) and self.params.day_targets > 0

    def _of_users(self, event: int) -> np.ndarray:
        """Rows of a branch's targets: drawn items of the days that begin at `event`, else the event's alone."""
        if not self._asks_for_days(event):
            return self.events.rows[event : event + 1][self.drawn[event : event + 1]]
        days = slice(event, int(self.target_stop[event]))
        rows = self.events.rows[days][self.drawn[days]]
        distinct = rows[np.sort(np.unique(rows, return_index=True)[1])]
        if len(distinct) <= self.params.day_targets:
            return distinct
        return distinct[np.sort(self.rng.choice(len(distinct), self.params.day_targets, replace=False))]


def draw_targets(rewards: np.ndarray, cap: float, rng: np.random.Generator) -> np.ndarray:
    """Which events are targets, each with probability reward / (quantile `cap` of the rewards above 0), at most 1.

    rewards: (E,). Returns (E,) bool; never True where the reward is not above 0, always where all rewards are the same
    and above 0. Raises InputError if no reward is above 0.
    """
    worth = np.where(rewards > 0, rewards, 0.0).astype(np.float64)  # no reward (NaN) is none
    positive = worth[(worth > 0) & np.isfinite(worth)]
    if not len(positive):
        if not len(rewards):
            return np.zeros(0, dtype=bool)
        raise InputError(f"none of {len(rewards)} events has a reward above 0; change histories.reward")
    most = np.quantile(positive, cap, method="inverted_cdf")
    drawn: np.ndarray = rng.random(len(worth)) < np.minimum(worth, most) / most
    return drawn
