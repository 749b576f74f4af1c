"""Train the quantiser that turns vectors into SIDs.

reads   embeddings; histories: co-occurrence pairs; base: its quantizer, adopted as it is; previous: the release whose
        names of codes a retraining keeps (`models.semantic_ids.alignment`)
writes  model.safetensors, config.json, report.json (num_contents: different vectors, content_uniqueness: share of items
        whose vector no other has; per level usage, perplexity, gini; reconstruction per modality),
        alignment.json (with previous: how the codes were renamed)
run     python -m models.semantic_ids.quantizer --params recipes/cpu_tiny.yaml --embeddings … --histories … \\
            --base= --previous= --seed 17 --out artifacts/quantizer

Two kinds behind one reader: `rqvae` (SID-v2 of PLUM 2.1, and TIGER's RQ-VAE with its switches off) and `rq_kmeans`
(principal components, then k-means of the residuals: no network, no co-occurrence; the strongest simple rival).
"""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.semantic_ids.codebook_sizes import Contents, codebook_sizes
from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams
from models.semantic_ids.table import SidTable, describe_levels
from models.semantic_ids.vectors import VectorFile
from plumline import artifact
from plumline.errors import RefusedError
from plumline.stage import main, say

if TYPE_CHECKING:
    import pyarrow as pa


def run(
    params: QuantizerParams,
    *,
    embeddings: Path,
    histories: Path,
    base: Path | None,
    previous: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Train on the vectors and pairs, or adopt the base's quantizer. Raises RefusedError if the codes collapsed."""
    if base is not None:
        artifact.copy_payload(base / "quantizer", out)
        return
    from features.histories import read_pairs

    file = VectorFile(embeddings)
    old = None if previous is None else SidTable.load(previous / "sids")
    contents = Contents.of(file, params.modalities)
    quantizer = fit(file, read_pairs(histories), sized(params, contents.number, old), seed, old)
    codes, reconstruction = measure(quantizer, file)
    if old is not None:
        from models.semantic_ids.alignment import align

        names = align(old, file.item_ids(), codes, quantizer.codebooks)
        quantizer = quantizer.renamed(names)
        codes = np.stack([new[codes[:, level]] for level, new in enumerate(names)], axis=1)
        artifact.write_json(out / "alignment.json", {"names": [new.tolist() for new in names]})
    quantizer.save(out)
    report: dict[str, Any] = {
        "num_items": file.num_items,
        "num_contents": contents.number,
        "content_uniqueness": contents.uniqueness,
        "levels": describe_levels(codes, quantizer.codebooks),
        "reconstruction": reconstruction,
    }
    artifact.write_json(out / "report.json", report)
    summary = ", ".join(f"{level['used']}/{level['size']}" for level in report["levels"])
    say(f"quantizer: codes in use {summary}; unexplained variance {reconstruction}")
    if params.codebooks == "auto":  # sized for the contents, so judged by them: a title that half of the items share
        levels = describe_levels(codes[contents.first], quantizer.codebooks)
        report = {**report, "num_items": contents.number, "levels": levels}
    refuse_collapse(report, params)


def sized(params: QuantizerParams, num_contents: int, old: SidTable | None = None) -> QuantizerParams:
    """The same with numbers for codebooks `auto`. Says which.

    old: the table that a retraining follows; its sizes stay until the catalogue has outgrown them. A catalogue at the
    border of two sizes must not change them every week, and one that has shrunk loses nothing by keeping them.
    """
    if params.codebooks != "auto":
        return params
    sizes, why = codebook_sizes(num_contents), f"for {num_contents:,} different contents"
    if old is not None:
        before = old.space.sizes[: old.prefixes.shape[1]]
        if prod(before) >= prod(sizes):
            sizes, why = before, "as those of the release that this one follows"
        else:
            why += f", which have outgrown the {list(before)} of the release that this one follows"
    say(f"quantizer: codebooks {list(sizes)} {why}")
    return params.model_copy(update={"codebooks": sizes})


def fit(
    file: VectorFile, pairs: "pa.Table", params: QuantizerParams, seed: int, old: SidTable | None = None
) -> Quantizer:
    """A quantiser of either kind, from at most max_items of the file's items. pairs: PAIRS rows. old: see
    `sized` and `retraining_start`."""
    from models.semantic_ids.quantizer_training import neighbours_of, sample_rows, train

    if params.codebooks == "auto":
        params = sized(params, Contents.of(file, params.modalities).number, old)
    item_ids = file.item_ids()
    neighbours = neighbours_of(pairs, item_ids, params.neighbours)
    rows = sample_rows(neighbours, params.max_items, seed)
    vectors = file.take(rows)
    old_codes = None
    if old is not None and params.retraining_start == "previous":
        nothing = (-1,) * old.prefixes.shape[1]
        old_codes = np.array([old.codes_of.get(item, nothing)[: len(nothing)] for item in vectors.item_ids])
    if params.modalities is not None:
        vectors = vectors.select(sorted(params.modalities))
    if params.kind == "rq_kmeans":
        from models.semantic_ids.rq_kmeans import train as train_kmeans

        return train_kmeans(vectors, params, seed, old_codes)
    if len(rows) < len(item_ids):
        neighbours = neighbours[rows][:, rows]
    return train(vectors, neighbours, params, seed, old_codes)


def measure(quantizer: Quantizer, file: VectorFile) -> tuple[np.ndarray, dict[str, float]]:
    """Codes of all items, (N, L) int64, and modality → share of its variance that they leave unexplained."""
    codes, sums, counts = [], dict.fromkeys(quantizer.modalities, 0.0), dict.fromkeys(quantizer.modalities, 0)
    for block, part in quantizer.encode_blocks(file.blocks()):
        codes.append(part)
        for name, value in quantizer.squared_errors(block, part).items():
            sums[name] += value
            counts[name] += int(block.masks[name].sum())
    unexplained = {name: round(sums[name] / max(counts[name], 1), 6) for name in sums}
    return np.concatenate([np.zeros((0, len(quantizer.codebooks)), np.int64), *codes]), unexplained


def refuse_collapse(report: dict[str, Any], params: QuantizerParams) -> None:
    """Raises RefusedError with the numbers if a level's usage or perplexity is below the recipe's floor.

    A corpus of less than four items a code of the largest codebook is not judged: it cannot fill the codes.
    """
    if report["num_items"] < 4 * max(level["size"] for level in report["levels"]):
        return
    for number, level in enumerate(report["levels"], start=1):
        evenness = level["perplexity"] / level["size"]
        if level["usage"] < params.usage_floor or evenness < params.perplexity_floor:
            raise RefusedError(
                f"quantizer: level {number} uses {level['used']} of {level['size']} codes "
                f"(usage {level['usage']:.2f}, floor {params.usage_floor}; perplexity {level['perplexity']:.1f}, "
                f"floor {params.perplexity_floor * level['size']:.1f}) for {report['num_items']} items; give items "
                "more to tell them apart, or try smaller quantizer.codebooks, a lower learning_rate, a lower "
                "contrastive_weight, or kind rq_kmeans"
            )


if __name__ == "__main__":
    main(run, section="quantizer")
