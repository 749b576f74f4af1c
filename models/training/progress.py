"""What a training tells while it runs: a bar on the terminal, and JSON lines beside the artifacts, clock and all."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm


class Progress:
    """Progress of one run.

    path: JSON lines, or None for a process that is silent. total: steps. peak: operations a second of the devices.
    after: (step, seconds) of a run that goes on; lines after that step are dropped, for they come again.
    """

    def __init__(
        self, path: Path | None, stage: str, total: int, peak: float, after: tuple[int, float] = (0, 0.0)
    ) -> None:
        self._total, self._peak = total, peak
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
            self._file.flush()

    @property
    def seconds(self) -> float:
        """Since the beginning, a killed run's time up to its checkpoint included."""
        return self._seconds_before + time.perf_counter() - self._began

    def show(self, loss: float, tokens: int) -> None:
        """One step more on the bar (which knows the time left), with its loss and the tokens so far."""
        speed = f"{tokens / self.seconds:.0f} tokens/s"
        self._bar.set_postfix_str(f"loss {loss:.3f}, {speed}", refresh=False)
        self._bar.update()

    def write(self, step: int, *, loss: float, tokens: int, flops: int, **values: Any) -> None:
        """One line: what was given, seconds, tokens_per_s, eta_s (seconds left), mfu (share of the peak).

        flops: operations needed so far (models/training/peak.py).
        """
        if self._file is None:
            return
        seconds = self.seconds
        line: dict[str, Any] = {"step": step, "loss": loss, "tokens": tokens, "seconds": round(seconds, 3)}
        line["tokens_per_s"] = round(tokens / seconds, 1)
        line["eta_s"] = round(seconds / step * (self._total - step), 3)
        line["mfu"] = round(flops / seconds / self._peak, 4)
        self._file.write(json.dumps({**line, **values}) + "\n")
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
