"""What files and options a command was given: from the words of its command line to options by noun.

    @intake_options
    def land(**said): given = given_from_cli(home, said)

`plumline init`, `land` and `inspect` take the same options; none of them keeps the last of two values in silence.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plumline.errors import InputError

if TYPE_CHECKING:
    from features.intake.options import Options

_FILES = {
    "items": "Catalogue: files, globs, folders or - (standard input); repeatable.",
    "events": "Event log, likewise; repeatable.",
    "users": "User profiles, likewise; optional.",
}
_OPTIONS = {
    "map": ("NAME=COLUMN", "Column to read as NAME. NAME= ignores one; topics=genres.name is a field of a list."),
    "where": ("CONDITION", "Rows to take: 'is_click == 1', 'event in (view, buy) and price > 0'."),
    "value": ("CONDITION", "Events that show interest: 'rating >= 4'; the others become impressions."),
    "explode": ("COLUMN", "A row for each element of a list: events of a session, impressions with a click mark."),
    "pivot": ("PROPERTY,VALUE", "Files with one row a property."),
    "constant": ("NAME=VALUE", "The same value in every row: surface=home."),
    "keep": ("first|last", "Which row stays where an item or a user has several that differ."),
    "columns": ("A,B,…", "Names of the columns of a file without a header."),
    "heading": ("COLUMN", "Column that lines like '17:' fill for the lines below."),
    "separator": ("TEXT", "Between two cells: ';', tab, '::'; default: guessed and said."),
    "quote": ("none", "Quotes are letters like others (MIND, Netflix)."),
    "encoding": ("NAME", "Of text files: latin-1, utf-16 …; default: guessed and said."),
    "format": ("csv|json|parquet", "Kind of file; default: by its name, then by what is in it."),
    "time-format": ("FORMAT", "How times are written: '%d/%m/%Y %H:%M'; default: found out and said."),
    "time-zone": ("NAME", "Of times that name none: Europe/Berlin; default: UTC."),
    "null": ("WORD", "A further word for 'not known'; an empty one first drops the usual words."),
}
FLAGS = tuple(_OPTIONS)
"""Names of the options that say how files are read, without their dashes."""


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how files are read, all repeatable: `map`, `where` … as tuples of text."""
    for name, (metavar, words) in reversed(_OPTIONS.items()):
        command = click.option(f"--{name}", name.replace("-", "_"), multiple=True, metavar=metavar, help=words)(command)
    return command


def intake_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is read and how: items, events, users, layout, folder (an argument) and the above."""
    command = reading_options(command)
    command = click.option("--layout", multiple=True, metavar="NAME", help="What DIR holds: see plumline layouts.")(
        command
    )
    for name, words in reversed(_FILES.items()):
        command = click.option(f"--{name}", multiple=True, metavar="FILE", help=words)(command)
    return click.argument("folder", required=False, metavar="[DIR]")(command)


def given_from_cli(
    home: Path, said: Mapping[str, Any], *, required: Sequence[str] = ()
) -> "dict[str, tuple[Options, ...]]":
    """Options by noun (one entry a kind of file of it), from what `intake_options` took.

    home: its layouts/ come before ours. required: nouns that must be given. Raises InputError in one line.
    """
    from features.intake.layouts import find_layout, layout_bases, layout_sources
    from features.intake.options import NOUNS, Options, override, parse_options

    layouts, folder = said.get("layout", ()), said.get("folder")
    if len(layouts) > 1:
        raise InputError(f"--layout is given twice ({', '.join(layouts)}); a folder has one layout")
    if folder is not None and not layouts:
        raise InputError(f"{folder}: say what it is: --layout NAME {folder} (plumline layouts lists them), or --guess")
    layout = find_layout(home, layouts[0]) if layouts else None
    sources = layout_sources(layout, Path(folder)) if layout and folder is not None else {}
    asked = parse_options({name: values for name, values in said.items() if isinstance(values, tuple)}, sources)
    if layout and folder is None and not asked:
        raise InputError(f"--layout {layouts[0]}: of which files? Give a DIR, or --events FILE of that layout")
    given: dict[str, tuple[Options, ...]] = {}
    for noun in (noun for noun in NOUNS if noun in asked):
        bases = layout_bases(layout, noun) if layout and asked[noun].files else sources.get(noun, (Options(),))
        given[noun] = tuple(override(base, asked[noun]) for base in bases)
    missing = [noun for noun in required if noun not in given]
    if missing:
        raise InputError(f"no {' and no '.join(missing)}; give --{missing[0]} FILE, or --layout NAME DIR")
    if not given:
        raise InputError("nothing to read; give --items, --events or --users, or --layout NAME DIR")
    stdin = [noun for noun, options in given.items() for one in options for path in one.files if path == "-"]
    if len(stdin) > 1:
        raise InputError(f"- is given {len(stdin)} times ({', '.join(stdin)}); standard input can be read once")
    return given
