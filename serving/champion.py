"""The release a worker answers with: follows `releases/pointers/champion.json` and `releases/tombstones.json`.

`recommender` is one immutable object, replaced in one assignment; a request takes it once. What cannot be loaded leaves
the old one in place: the pointer's new release is tried again after `_RETRY_SECONDS`, not twice a second.
"""

from collections.abc import Callable
from pathlib import Path

from plumline.errors import PlumlineError
from plumline.stage import say
from serving.pointers import Pointer, read_pointer, read_tombstones, sealed_folder, tombstones_path
from serving.recommender import Recommender

_RETRY_SECONDS = 30.0


def _no_one() -> None:
    """Nobody wants to know."""


class Champion:
    """What one worker serves now. recommender: None until a champion could be loaded. fencing: the pointer's number."""

    def __init__(
        self, releases: Path, *, on_swap: Callable[[], None] = _no_one, on_failure: Callable[[], None] = _no_one
    ) -> None:
        self.recommender: Recommender | None = None
        self.fencing = 0
        self._releases = releases
        self._on_swap = on_swap
        self._on_failure = on_failure
        self._tombstones: frozenset[str] | None = None
        self._tombstones_stamp: tuple[int, int] | None = (0, 0)
        self._failed: Pointer | None = None
        self._retry_at = 0.0

    def refresh(self, at: float) -> None:
        """Look at the files once; load and swap if they changed. at: seconds of any steady clock. Never raises."""
        try:
            self._refresh_tombstones()
            pointer = read_pointer(self._releases)
        except (PlumlineError, OSError) as error:
            self._fail(str(error))
            return
        if pointer is None or (pointer == self._failed and at < self._retry_at):
            return
        if self.recommender is None or self.recommender.release.release_id != pointer.release_id:
            assert self._tombstones is not None
            try:
                recommender = Recommender.load(
                    sealed_folder(self._releases, pointer.release_id), tombstones=self._tombstones
                )
                recommender.recommend(k=1)  # the first answer is slow; not a user's
            except Exception as error:  # whatever a new release does wrong, the old one goes on answering
                self._failed, self._retry_at = pointer, at + _RETRY_SECONDS
                self._fail(f"{pointer.release_id} cannot be served, the old one stays: {type(error).__name__}: {error}")
                return
            self.recommender = recommender
            self._on_swap()
            say(f"service: {pointer.release_id} answers")
        self.fencing = pointer.fencing
        self._failed = None

    def _refresh_tombstones(self) -> None:
        path = tombstones_path(self._releases)
        stamp = (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None
        if stamp == self._tombstones_stamp:
            return
        self._tombstones = read_tombstones(self._releases)
        self._tombstones_stamp = stamp
        if self.recommender is not None:
            self.recommender = self.recommender.with_tombstones(self._tombstones)

    def _fail(self, line: str) -> None:
        self._on_failure()
        say(f"service: {line}")
