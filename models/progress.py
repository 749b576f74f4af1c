"""What a training tells while it runs: a bar on the terminal, and JSON lines beside the artifacts, clock and all."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm


class Progress:
    """Progress of one run.

    path: JSON lines, or None for a process that is silent. total: steps. after: (step, seconds) of a run that goes on;
    lines after that step are dropped, for they come again.
    """

    def __init__(self, path: Path | None, stage: str, total: int, after: tuple[int, float] = (0, 0.0)) -> None:
        self.path = path
        self._seconds_before, self._began = after[1], time.perf_counter()
        self._bar = tqdm(
            total=total, initial=after[0], desc=stage, unit=" steps", mininterval=1.0, disable=path is None
        )
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_until(path, after[0])
            self._file = path.open("w", encoding="utf-8")
            self._file.writelines(kept)

    @property
    def seconds(self) -> float:
        """Since the beginning, a killed run's time up to its checkpoint included."""
        return self._seconds_before + time.perf_counter() - self._began

    def show(self, **values: str) -> None:
        """One step more on the bar, whose own ETA stands before these values."""
        self._bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in values.items()), refresh=False)
        self._bar.update()

    def write(self, **values: Any) -> None:
        """One line of JSON."""
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()


def _lines_until(path: Path, step: int) -> list[str]:
    if not step or not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break  # the line at which the run was killed
    return kept
