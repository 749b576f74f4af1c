"""Which Plumline this is: the version that pyproject.toml names, read when somebody asks.

In a clone the file is the truth: an editable installation keeps the number of the day on which it was made.
"""

import tomllib
from importlib import metadata
from pathlib import Path

NAME = "plumline"
_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def read_version() -> str:
    """The version of the code that runs; of a wheel, which has no pyproject.toml beside it, what was installed."""
    if _PYPROJECT.is_file():
        project = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == NAME:  # site-packages may hold somebody else's
            return str(project["version"])
    return metadata.version(NAME)
