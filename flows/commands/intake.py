"""`plumline init`, `land`, `unland`, `requeue`, `deliveries`: the verbs of what has landed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flows.commands.layouts import guess_folder
from flows.commands.verb import find_home, json_option, once_option, print_answer
from flows.steps.given import given_from_cli, intake_options
from plumline.errors import InputError


@click.command()
@intake_options
@click.option("--guess", is_flag=True, help="Say what DIR holds and which command lands it; land nothing.")
@once_option("--recipe", default="cpu_tiny", help="A file of recipes/, without .yaml; default: cpu_tiny.")
@json_option
def init(guess: bool, recipe: str, as_json: bool, **said: Any) -> None:
    """Check your own data, land it in day partitions, and choose a recipe. May be repeated until a bootstrap."""
    home = find_home()
    if guess:
        told = guess_folder(home, _only_a_folder(said))
        print_answer(told.to_json(), as_json, told.lines())
        return
    from flows.steps.landing import init_home

    landed = init_home(home, given_from_cli(home, said, required=("items", "events")), recipe=recipe)
    if as_json:
        print_answer(landed.to_json(), True, [])


@click.command()
@intake_options
@once_option("--replace", metavar="DELIVERY", help="Take this delivery back when the files have landed.")
@json_option
def land(replace: str | None, as_json: bool, **said: Any) -> None:
    """Land further files: tomorrow's events, new items, changed profiles."""
    from flows.steps.landing import land_more

    home = find_home()
    landed = land_more(home, given_from_cli(home, said), instead_of=replace)
    if as_json:
        print_answer(landed.to_json(), True, [])


def _only_a_folder(said: Mapping[str, Any]) -> Path:
    """The folder of --guess. Raises InputError if there is none, or if anything else was said."""
    others = sorted(name for name, value in said.items() if value and name != "folder")
    if said.get("folder") is None or others:
        more = f", without --{others[0]}" if others else ""
        raise InputError(f"--guess looks at a folder alone: plumline init --guess DIR{more}")
    return Path(said["folder"])


@click.command()
@click.argument("delivery")
@click.option("--dry-run", is_flag=True, help="Say what depends on it, and change nothing.")
@json_option
def unland(delivery: str, dry_run: bool, as_json: bool) -> None:
    """Take a DELIVERY back: its id, the beginning of it, or its number (plumline deliveries)."""
    from flows.steps.unlanding import unland as take_back

    told = take_back(find_home(), delivery, dry_run=dry_run)
    print_answer(told.to_json(), as_json, told.lines())


@click.command()
@json_option
def requeue(as_json: bool) -> None:
    """Have rows that were put aside judged again by the next run; those whose item has landed are anyway."""
    from flows.steps.deliveries import requeue as mark

    waiting = mark(find_home())
    lines = [f"{number:>8}  {reason}" for reason, number in waiting.items()]
    last = "the next plumline daily or bootstrap judges them again" if waiting else "nothing is put aside"
    print_answer(waiting, as_json, [*lines, last])


@click.command()
@json_option
def deliveries(as_json: bool) -> None:
    """What has landed, oldest first: files, when, rows, days, and what of it is put aside."""
    from flows.steps.deliveries import deliveries_table, list_deliveries

    found = list_deliveries(find_home())
    print_answer(found, as_json, deliveries_table(found))


VERBS = (init, land, unland, requeue, deliveries)
