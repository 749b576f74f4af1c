"""What verbs share: the home they work in, how they print, options that mean the same everywhere."""

import json
from pathlib import Path
from typing import Any

import click


def find_home() -> Path:
    """The home of this call."""
    from plumline.settings import get_settings

    return get_settings().home


def print_answer(value: Any, as_json: bool, lines: list[str]) -> None:
    """stdout: the value as JSON, or the lines for people."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, default=str) if as_json else "\n".join(lines))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
