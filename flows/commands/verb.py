"""What verbs share: the home they work in, how they print, options that mean the same everywhere."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from plumline.errors import InputError


def find_home() -> Path:
    """The home of this call."""
    from plumline.settings import get_settings

    return get_settings().home


def print_answer(value: Any, as_json: bool, lines: list[str]) -> None:
    """stdout: the value as JSON, or the lines for people."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, default=str) if as_json else "\n".join(lines))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def once_option(name: str, *, default: str | None = None, **about: Any) -> Callable[[Any], Any]:
    """An option of one value that is refused where it is given twice; click itself would take the last in silence."""

    def take(_: click.Context, __: click.Parameter, values: Sequence[str]) -> str | None:
        if len(values) > 1:
            raise InputError(f"{name} is given {len(values)} times ({', '.join(values)}), and takes one value")
        return values[0] if values else default

    return click.option(name, multiple=True, callback=take, **about)
