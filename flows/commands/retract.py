"""`plumline retract`: items that are never served again, and which of them nobody has ever heard of."""

from collections.abc import Iterable
from pathlib import Path

from plumline.stage import say
from serving.pointers import add_tombstones, read_pointer, sealed_folder


def retract(home: Path, item_ids: Iterable[str]) -> list[str]:
    """Never serve these items again from this home; returns all such items, sorted.

    An id that neither a delivery nor the champion has is retracted too (it may land yet), and said: it may be a slip.
    """
    wanted = list(dict.fromkeys(item_ids))
    known = _known(home)
    for item in wanted:
        if item not in known:
            say(f"no delivery and no release has an item {item!r}; it is never served, should one come")
    return sorted(add_tombstones(home / "releases", wanted))


def _known(home: Path) -> set[str]:
    from features.catalog import Catalog
    from features.door import known_items

    known = known_items(home / "data" / "landing")
    pointer = read_pointer(home / "releases")
    if pointer is not None:
        known |= set(Catalog.load(sealed_folder(home / "releases", pointer.release_id) / "catalog").item_ids)
    return known
