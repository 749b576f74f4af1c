"""Which code made a release, and whether it is the code that is installed.

An artifact's key holds the hash of all code that its stage can reach, so a changed comment is other code, and what
other code made may well be the same (docs/decisions/0008-what-a-change-of-code-does.md).
"""

from pathlib import Path

from flows.steps.graph import graph_version, read_graph, upstream
from flows.steps.registry import Registry
from flows.steps.runs import read_run
from plumline import artifact
from plumline.errors import ArtifactError
from plumline.stage import code_version, sources_version

_ADOPTED = frozenset({"embeddings", "quantizer", "vocabulary", "cpt"})
"""Parts that a daily takes over: the release learned anew, at the lineage's beginning, says which code made them."""


def stages_of_other_code(home: Path, release_id: str) -> list[str]:
    """Stages of the graph whose part of a release was made by other code than what is installed, in running order.

    Parts that are not at hand are not judged, nor are those of a release that the installed code made again, the same.
    """
    registry = Registry(home)
    roots = [entry.release_id for entry in registry.lineage(release_id) if not entry.base]
    sources = sources_version()
    if all(read_run(home, maker).get("sources") == sources for maker in {*roots[:1], release_id}):
        return []  # what a closure is takes half a second to find out
    graph = read_graph(home)
    installed = graph_version(graph, upstream(graph, "release"))
    found = []
    for name, stage in graph.items():
        maker = roots[0] if name in _ADOPTED and roots else release_id
        if read_run(home, maker).get("code") == installed:
            continue
        try:
            made_by = artifact.read_manifest(registry.sealed(maker) / name).code
        except ArtifactError:
            continue
        if made_by and made_by != code_version(stage.module):
            found.append(name)
    return found
