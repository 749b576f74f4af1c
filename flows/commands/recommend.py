"""`plumline recommend`: the champion in this process, asked as the service would be."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumline.errors import InputError, RefusedError
from plumline.settings import clock_offset
from serving.pointers import read_pointer, read_tombstones, sealed_folder

if TYPE_CHECKING:
    from serving.recommender import Recommendation


@dataclass(frozen=True)
class Answer:
    """A recommendation, ready to print."""

    recommendation: "Recommendation"

    def to_json(self) -> dict[str, Any]:
        """The fields of `POST /recommend`'s answer, less its request_id."""
        found = self.recommendation
        items = [{"item_id": i.item_id, "title": i.title, "sid": i.sid, "score": i.score} for i in found.items]
        return {
            "release_id": found.release_id,
            "items": items,
            "degraded": found.degraded,
            "reason": found.reason,
            "detail": found.detail,
            "num_allowed": found.num_allowed,
        }

    def lines(self) -> list[str]:
        """One line an item: id, score, SID, title."""
        rows = [f"{i.item_id}\t{i.score:.4f}\t{i.sid}\t{i.title or ''}" for i in self.recommendation.items]
        said = ": ".join(part for part in (self.recommendation.reason, self.recommendation.detail) if part)
        return rows + ([f"# {said}"] if said else [])


def recommend(
    home: Path,
    *,
    user: str | None,
    history: list[str] | None,
    num_items: int,
    rule: str | None = None,
    max_per_branch: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
) -> Answer:
    """Ask for `num_items` items. Exactly one of user (read from the online store) and history must be given.

    The rule counts ages from now. See `Recommender.recommend` and `models/retrieval/beam.py` for the others.
    """
    if (user is None) == (history is None):
        raise InputError("give --user ID or --history ID,ID…, one of the two")
    pointer = read_pointer(home / "releases")
    if pointer is None:
        raise RefusedError("no champion yet; run plumline bootstrap first")
    from models.retrieval.beam import Choice
    from serving.recommender import Recommender

    recommender = Recommender.load(
        sealed_folder(home / "releases", pointer.release_id), tombstones=read_tombstones(home / "releases")
    )
    asked: dict[str, Any] = {
        "k": num_items,
        "rule": rule,
        "now_ms": int((datetime.now(UTC) + clock_offset()).timestamp() * 1000),
        "choice": Choice(cap=max_per_branch, temperature=temperature, seed=seed),
    }
    if user is None:
        return Answer(recommender.recommend(history=[item for item in history or [] if item], **asked))
    from features.online import OnlineFeatures

    online = OnlineFeatures.open(home)
    try:
        online.read(user, timeout_s=60.0)  # the first call builds the store's client, which takes a second
        return Answer(recommender.recommend(user_id=user, features=online, **asked))
    finally:
        online.close()
