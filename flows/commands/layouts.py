"""`plumline layouts` and `plumline init --guess DIR`: which layouts there are, and which one a folder has.

Both only read: nothing is landed, nothing is written.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.verb import find_home, json_option, print_answer

if TYPE_CHECKING:
    from features.intake.guess import Fit, Role
    from features.intake.layouts import Layout


@dataclass(frozen=True)
class LayoutTable:
    """Every layout by name, ours and those of the home."""

    layouts: "tuple[Layout, ...]"

    def to_json(self) -> list[dict[str, Any]]:
        """Everything that a layout's file says."""
        return [layout.model_dump(mode="json", exclude_defaults=True) for layout in self.layouts]

    def lines(self) -> list[str]:
        """For people."""
        width = max((len(layout.name) for layout in self.layouts), default=0)
        lines = []
        for layout in self.layouts:
            lines.append(f"{layout.name:<{width}}  {layout.about}")
            needs = f"cannot land: {layout.cannot}" if layout.cannot else f"needs {layout.needs}"
            lines.append(f"{'':<{width}}  {needs}")
        return [*lines, "land one with: plumline init --layout NAME DIR"]


@dataclass(frozen=True)
class Guess:
    """What a folder most likely holds. fits: layouts, the best first; roles: of its files, where none fits."""

    folder: str
    fits: "tuple[Fit, ...]"
    roles: "tuple[Role, ...]"

    def to_json(self) -> dict[str, Any]:
        """Names and columns; `command` is what to type next, empty where something is missing."""
        return {
            "folder": self.folder,
            "layouts": [
                {"layout": fit.layout.name, "cannot": fit.layout.cannot, "files": dict(fit.files)} for fit in self.fits
            ],
            "files": [
                {"file": r.name, "noun": r.noun, "map": dict(r.mapping), "columns": list(r.columns)} for r in self.roles
            ],
            "command": self.command,
        }

    @property
    def command(self) -> str:
        """What lands the folder; empty where something is missing."""
        if self.fits:
            layout = self.fits[0].layout
            return "" if layout.cannot else f"plumline init --layout {layout.name} {shlex.quote(self.folder)}"
        chosen = self._chosen()
        if "items" not in chosen or "events" not in chosen:
            return ""
        words = ["plumline", "init"]
        for noun, role in chosen.items():
            words += [f"--{noun}", f"{self.folder.rstrip('/')}/{role.name}"]
            words += [f"--map={noun}:{name}={c}" for name, c in role.mapping.items() if name != c]
        return shlex.join(words)

    def lines(self) -> list[str]:
        """For people."""
        lines = []
        for fit in self.fits:
            lines.append(f"{fit.layout.name} fits: {fit.layout.about}")
            for noun, files in fit.files.items():
                some = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
                lines.append(f"  {noun:<6}  {some}")
                lines += [f"          {words}" for words in _options_of(fit, noun)]
            if fit.layout.cannot:
                lines.append(f"  cannot land: {fit.layout.cannot}")
        if not self.fits:
            lines.append(f"no layout fits {self.folder} (plumline layouts lists them); by the names of its columns")
            lines += [f"  {role.noun or 'unknown':<7}  {role.name}: {_columns_of(role)}" for role in self.roles]
            wanted = [noun for noun in ("items", "events") if noun not in self._chosen()]
            lines += [f"  no file has what {noun} need: {_NEEDS[noun]}" for noun in wanted]
        return [*lines, f"next: {self.command}"] if self.command else lines

    def _chosen(self) -> "dict[str, Role]":
        """For each noun the file that has the most of what it wants."""
        from features.intake.guess import missing

        chosen: dict[str, Role] = {}
        for role in self.roles:
            if role.noun is None or missing(role.noun, role.mapping):
                continue
            if role.noun not in chosen or len(role.mapping) > len(chosen[role.noun].mapping):
                chosen[role.noun] = role
        return dict(sorted(chosen.items(), key=lambda pair: ("items", "events", "users").index(pair[0])))


_NEEDS = {
    "items": "an id, and a title, description, channel or topics",
    "events": "ids of a user and an item, and a time",
}


def _options_of(fit: "Fit", noun: str) -> list[str]:
    """What a layout says about each kind of its files, a line a kind."""
    lines = []
    for source in fit.kinds[noun]:
        asked = source.model_dump(mode="json", exclude_defaults=True, exclude={"files", "null_words"})
        mapping = [f"{name}={column}" for name, column in asked.pop("map", {}).items()]
        others = [f"{name} {_shown(value)}" for name, value in asked.items()]
        if words := ", ".join([*mapping, *others]):
            lines.append(words)
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return ",".join(value) if isinstance(value, list) else repr(value)


def _columns_of(role: "Role") -> str:
    named = [name if name == column else f"{name}={column}" for name, column in role.mapping.items()]
    return ", ".join(named) or f"columns {', '.join(role.columns[:12])}"


def read_layouts(home: Path) -> LayoutTable:
    """Every layout. Raises InputError for one of the home's that is broken."""
    from features.intake.layouts import list_layouts, read_layout

    return LayoutTable(tuple(read_layout(path) for path in list_layouts(home).values()))


def guess_folder(home: Path, folder: Path) -> Guess:
    """What a folder holds. Raises InputError if it is none."""
    from features.intake.guess import guess_layouts, guess_roles

    fits = guess_layouts(home, folder)
    roles = [] if fits else guess_roles(folder)
    return Guess(folder.as_posix(), tuple(fits), tuple(roles))


@click.command()
@json_option
def layouts(as_json: bool) -> None:
    """The named layouts of public logs, and which files each needs: plumline init --layout NAME DIR."""
    found = read_layouts(find_home())
    print_answer(found.to_json(), as_json, found.lines())
