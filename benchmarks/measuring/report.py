"""What a benchmark found, to whoever asked: `--json FILE`, else stdout."""

import json
from pathlib import Path
from typing import Any


def deliver(report: dict[str, Any], file: Path | None) -> None:
    """Write the report to a file, or print it."""
    text = json.dumps(report, indent=2) + "\n"
    if file is None:
        print(text, end="")
    else:
        file.write_text(text, encoding="utf-8")
