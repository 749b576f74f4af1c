"""Rules of the gate against other methods: what users get must not be worse than something simpler.

The simpler-model rule of the ML Test Score (Breck et al. 2017, "Model 5"): who serves a large model keeps a simple one
beside it and shows that the large one is better. Pure functions of the contents of a scores.json; gates.py calls them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from monitoring.methods import (
    MODEL,
    NOISE_SE,
    PROTOCOLS,
    SERVED,
    WITHOUT_MODEL,
    Difference,
    Protocol,
    difference,
    gain_in_words,
    measured_for,
    methods_of,
    model_gain,
    number,
    plain_name,
    served_method,
    signed,
)
from monitoring.verdict import Check, show

NEEDED = (WITHOUT_MODEL, "memory", "own", "popularity")
"""Methods without which a release that has a ranker cannot be judged."""
NEEDED_WITHOUT_RANKER = ("popularity",)


def against_methods(scores: Mapping[str, Any], protocol: Protocol, max_behind_se: float) -> Iterator[Check]:
    """What is served against every other method, of each protocol; blocking under the one given.

    observed, limit: of the difference in recall@10. The beams alone are compared and do not block: they are a source of
    what is served, and neither simpler nor a rival.
    """
    served = served_method(scores)
    needed = NEEDED if served == SERVED else NEEDED_WITHOUT_RANKER
    names = [*needed, *(name for name in methods_of(scores) if name not in (served, *needed))]
    for asked in PROTOCOLS:
        for name in names:
            yield _against(scores, name, asked, max_behind_se, blocking=asked == protocol and name != MODEL)


def on_model_gain(scores: Mapping[str, Any]) -> Iterator[Check]:
    """What the language model adds, in words, of each protocol; never blocking. A release without a ranker has none."""
    if served_method(scores) != SERVED:
        return
    for protocol in PROTOCOLS:
        gain = model_gain(scores, protocol)
        limit = None if gain is None else NOISE_SE * gain.standard_error
        adds = gain is not None and limit is not None and gain.value > limit
        yield Check(
            f"{protocol}/model_gain",
            None if gain is None else gain.value,
            limit,
            adds,
            gain_in_words(gain, protocol),
            blocking=False,
            valid=gain is not None,
        )


def _against(
    scores: Mapping[str, Any], method: str, protocol: Protocol, max_behind_se: float, *, blocking: bool
) -> Check:
    served, found = served_method(scores), difference(scores, method, protocol)
    recalls = ", ".join(
        f"{plain_name(name)} {show(number(scores, 'methods', name, protocol, 'recall@10'))}"
        for name in (served, method)
    )
    name = f"{protocol}/{method}"
    if found is None:
        return Check(name, None, None, False, f"recall@10 {recalls}", blocking=blocking, valid=False)
    limit = -max_behind_se * found.standard_error
    behind = found.is_behind(max_behind_se)
    reason = f"recall@10 {recalls}: {found} ({_error_in_words(scores, method, found)}), at least {signed(limit)}"
    if found.value < 0:
        reason += f"; {plain_name(method)} is better" + ("" if behind else ", within noise")
    return Check(name, found.value, limit, not behind, reason, blocking=blocking)


def _error_in_words(scores: Mapping[str, Any], method: str, found: Difference) -> str:
    if found.paired:
        return "paired by user"
    measured = measured_for(scores, method)
    return "errors taken as independent" + (f", figures of {measured}" if measured else "")
