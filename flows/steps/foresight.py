"""What the gate will refuse, looked at between the stages: a release that cannot pass is not trained.

A refusal of the gate leaves a release that is kept and not promoted. What is refused here has no release: it is one
line and exit code 2, and the next run looks again, at whatever has landed or been changed by then.
"""

from collections.abc import Callable
from pathlib import Path

from flows.steps.graph import read_params
from flows.steps.registry import Registry
from monitoring import foresight
from monitoring.gates import GateParams
from plumline import artifact
from plumline.errors import RefusedError
from plumline.stage import load_params
from serving.pointers import read_pointer


class ForeseenError(RefusedError):
    """The gate would say no, whatever is trained."""


def foresee(home: Path, *, base: str) -> dict[str, Callable[[], None]]:
    """Stage → what looks at its artifact when it is finished, and raises ForeseenError.

    base: id of the release that this one continues, "" for none.
    """
    params = load_params(home / read_params(home)["recipe"], "gate", GateParams)
    artifacts = home / "artifacts"

    def after_histories() -> None:
        _refuse(foresight.foresee_queries(artifact.read_json(artifacts / "histories" / "stats.json"), params))

    def after_sids() -> None:
        report, trained = (artifact.read_json(artifacts / name / "report.json") for name in ("sids", "quantizer"))
        codebooks = artifact.read_json(artifacts / "quantizer" / "config.json")["codebooks"]
        _refuse(foresight.foresee_sids(report, trained, codebooks, params, continues=bool(base)))

    def after_index() -> None:
        from models.retrieval.csr import read_index_item_ids

        registry, champion = Registry(home), read_pointer(home / "releases")
        reigning = registry.restore(champion.release_id) if champion else None
        before = len(read_index_item_ids(reigning / "index")) if reigning else None
        _refuse(foresight.foresee_index(len(read_index_item_ids(artifacts / "index")), before, params))

    return {"histories": after_histories, "sids": after_sids, "index": after_index}


def _refuse(reason: str) -> None:
    if reason:
        raise ForeseenError(reason)
