"""`plumline beam-check`: a beam-truth certificate of a release, over histories of the last run."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.histories import read_histories
from flows.steps.registry import Registry
from models.retrieval.rules import parse
from plumline.errors import MissingArtifactError, RefusedError
from plumline.tables import column
from serving.pointers import read_pointer, read_tombstones

if TYPE_CHECKING:
    from models.retrieval.beam_check import Certificate


def check_beams(
    home: Path, *, release_id: str | None, num_requests: int, width: int, num_items: int, rule: str | None, seed: int
) -> "Certificate":
    """Ask as users of a release's last run would, and compare with the exact ranking. release_id: None: the champion.

    The rule counts ages from the end of the release's as_of.
    Raises RefusedError without a champion or histories, InputError for a rule that cannot be read or allows nothing.
    """
    from models.retrieval import beam_check
    from models.retrieval.retriever import Request
    from serving.recommender import Recommender

    asked = None if rule is None else parse(rule)  # before anything is loaded
    if release_id is None:
        pointer = read_pointer(home / "releases")
        if pointer is None:
            raise RefusedError("no champion yet; run plumline bootstrap first")
        release_id = pointer.release_id
    try:
        histories = read_histories(home / "artifacts" / "histories")
    except MissingArtifactError as error:
        raise RefusedError(f"no histories to ask with ({error}); run plumline daily") from None
    recommender = Recommender.load(Registry(home).restore(release_id), precision="float32")
    retriever = recommender.retriever.without(read_tombstones(home / "releases"))
    size = min(num_requests, len(histories))
    sample = histories.take(np.sort(np.random.default_rng(seed).choice(len(histories), size, replace=False)))
    day_after = datetime.combine(recommender.release.as_of + timedelta(days=1), time(), UTC)
    requests = [
        Request(history=list(zip(items, times, strict=True)), rule=asked, now_ms=int(day_after.timestamp() * 1000))
        for items, times in zip(column(sample, "item_ids"), column(sample, "timestamps"), strict=True)
    ]
    return beam_check.check_beams(retriever, requests, k=num_items, width=width)
