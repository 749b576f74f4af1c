"""Methods: the ways to make a list that scores.json compares, their names for people, and what is served beside them.

Pure functions of the contents of a scores.json, or of its `leave_one_out`. A release of before there was a ranker has
no `served`: users got the beams of its model, so `model` stands for it wherever what was served is asked for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Protocol = Literal["seen_masked", "not_masked"]
PROTOCOLS: tuple[Protocol, ...] = ("seen_masked", "not_masked")
PROTOCOL_WORDS: dict[str, str] = {"seen_masked": "seen masked", "not_masked": "not masked"}
Measure = Literal["recall@10", "ndcg@10"]

SERVED, WITHOUT_MODEL, MODEL = "served", "without_model", "model"
PLAIN_NAMES = {
    SERVED: "served",
    WITHOUT_MODEL: "without model",
    MODEL: "model",
    "memory": "memory",
    "own": "own",
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "text_knn": "text kNN",
    "knn_sum": "kNN sum",
    "star": "STAR",
    "sasrec": "SASRec",
}
"""A method's name in scores.json → its name for people, in the order of every table."""
LEGEND = (
    "served: what users get. without model: the same ranker, with no beams and no figures of the language model. "
    "model: its beams alone. memory: counted parts alone. own: a user's own items by recent count. Then rivals."
)
SIMPLE = ("memory", "own", "popularity", "item_knn", "text_knn", "knn_sum", "star")
"""Methods that count and compare, and train nothing."""
NOISE_SE = 2.0
"""Standard errors up to which a difference is called noise."""


@dataclass(frozen=True)
class Difference:
    """What is served minus a method, in recall@10 or ndcg@10, and the standard error of that.

    paired: both were asked for the same users, and the error is of their differences. Else the two errors are taken as
    independent, which makes too much of them where the users were the same.
    """

    value: float
    standard_error: float
    paired: bool = True

    def is_behind(self, max_se: float = NOISE_SE) -> bool:
        """Whether the method is ahead by more than so many standard errors."""
        return self.value < -max_se * self.standard_error

    def __str__(self) -> str:
        return f"{signed(self.value)} ± {self.standard_error:.4f}"


def number(values: Any, *path: str) -> float | None:
    """A finite number below nested keys, or None."""
    found = _at(values, *path)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def signed(value: float) -> str:
    """Four decimals with a sign; what rounds to nothing is no minus."""
    return f"{round(value, 4) + 0.0:+.4f}".replace("-", "−")


def methods_of(scores: Mapping[str, Any]) -> list[str]:
    """The methods of a scores.json in the order of PLAIN_NAMES, unknown ones behind them."""
    names = set(scores.get("methods") or ())
    return [*(name for name in PLAIN_NAMES if name in names), *sorted(names.difference(PLAIN_NAMES))]


def served_method(scores: Mapping[str, Any]) -> str:
    """The method whose lists users get: `served`, or `model` where there was no ranker yet."""
    return SERVED if SERVED in methods_of(scores) else MODEL


def plain_name(method: str) -> str:
    """A method's name for people; one that is not known has its own."""
    return PLAIN_NAMES.get(method, method)


def measured_for(scores: Mapping[str, Any], method: str) -> str:
    """The as_of of the older release that a method's figures were measured for, "" if they are this one's."""
    return str(_at(scores, "methods", method, "from") or "")


def label(scores: Mapping[str, Any], method: str) -> str:
    """A method's name for people; with its day if its figures were measured for an older release."""
    if method == MODEL == served_method(scores):
        return f"{plain_name(method)} (served)"
    measured = measured_for(scores, method)
    return f"{plain_name(method)} of {measured}" if measured else plain_name(method)


def difference(
    scores: Mapping[str, Any], method: str, protocol: Protocol, measure: Measure = "recall@10"
) -> Difference | None:
    """What is served minus a method, paired where that was measured; None if either has no figure.

    A standard error that is not known counts as 0.
    """
    served = served_method(scores)
    ours, theirs = (number(scores, "methods", name, protocol, measure) for name in (served, method))
    if ours is None or theirs is None:
        return None
    if paired := _read(scores, "served_minus", method, protocol, measure=measure):
        return paired
    errors = (number(scores, "methods", name, protocol, f"{measure}_se") or 0.0 for name in (served, method))
    return Difference(ours - theirs, math.hypot(*errors), paired=False)


def model_gain(scores: Mapping[str, Any], protocol: Protocol, measure: Measure = "recall@10") -> Difference | None:
    """What the language model adds: served minus `without_model`, paired by user; None if it was not measured."""
    return _read(scores, "model_gain", protocol, measure=measure)


def gain_in_words(gain: Difference | None, protocol: Protocol) -> str:
    """What a model gain in recall@10 means, as one clause."""
    where = f"model_gain {gain or '(no figure)'} in recall@10, {PROTOCOL_WORDS[protocol]}"
    if gain is None:
        return f"nothing says what the language model adds: {where}"
    if gain.value > NOISE_SE * gain.standard_error:
        return f"the language model adds to what is served: {where}"
    if gain.is_behind():
        return f"the language model makes what is served worse: {where}; docs/training.md"
    return f"the language model adds nothing measurable: {where}; docs/training.md"


def _at(values: Any, *path: str) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _read(scores: Mapping[str, Any], *path: str, measure: Measure) -> Difference | None:
    value, error = (number(scores, *path, key) for key in (measure, f"{measure}_se"))
    return None if value is None or error is None else Difference(value, error)
