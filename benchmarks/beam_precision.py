"""What the precision of the weights costs and brings a beam search: speed, and how much of a list stays the same.

    python benchmarks/beam_precision.py [--quick] [--json FILE] [--smollm FOLDER] [--run FOLDER]

float32, bfloat16, and int8 (torch's dynamic quantisation of linear layers), each against float32 in the same run: the
random Llama and, with --smollm, the SmolLM2-135M of bench_beam.py (prompt 256, 50 beams, 200,000 SIDs), whose choices
are close, so that they are the worst case; and with --run, a home after `make day`, its champion on the held-out
user-days of artifacts/histories, with Recall@10 (seen items kept). Process time on one thread, median of rounds that
take turns.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.bench_beam import SEED, SPACE, Language, random_llama, smollm2  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.report import deliver  # noqa: E402
from features.catalog import Catalog  # noqa: E402
from models.evaluation.queries import Ruler, Task  # noqa: E402
from models.language.words import read_profiles  # noqa: E402
from models.retrieval.beam import beam_search  # noqa: E402
from models.retrieval.csr import Index  # noqa: E402
from models.retrieval.held_out import PLAIN, K, read_sample  # noqa: E402
from models.retrieval.trie import Trie  # noqa: E402
from plumline.stage import say  # noqa: E402
from serving.pointers import read_pointer, sealed_folder  # noqa: E402
from serving.recommender import Recommender  # noqa: E402

WIDTH = 50


def precisions(model: Any) -> dict[str, Any]:
    """The model in every precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces another home for this function
        int8 = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    return {"float32": model, "bfloat16": copy.deepcopy(model).to(torch.bfloat16), "int8": int8}


def common(lists: list[list[Any]], others: list[list[Any]]) -> float:
    """Mean share of the first ten that two sets of lists have in common."""
    return float(np.mean([len(set(a[:K]) & set(b[:K])) / K for a, b in zip(lists, others, strict=True)]))


def measure_random(language: Language, batch: int, num_sids: int, repeats: int) -> dict[str, Any]:
    """Speed and common SIDs of random prompts."""
    generator = np.random.default_rng(SEED)
    index = Index.build(np.stack([generator.integers(0, s, num_sids) for s in SPACE.sizes], axis=1), SPACE.sizes)
    trie, prompts = Trie.of(index, "cpu"), generator.integers(3, language.sid_base, (batch, 256)).tolist()

    def search(model: Any) -> list[list[Any]]:
        found = beam_search(
            model, prompts, space=SPACE, sid_base=language.sid_base, index=trie, width=WIDTH, device="cpu"
        )
        return [list(map(tuple, beams.codes.tolist())) for beams in found]

    models, times, lists = precisions(language.model), dict[str, list[float]](), dict[str, Any]()
    for number in range(repeats + 1):
        for name, model in models.items():
            start = time.process_time()
            lists[name] = search(model)
            if number:
                times.setdefault(name, []).append(time.process_time() - start)
    seconds = {name: statistics.median(spent) for name, spent in times.items()}
    return {
        name: {
            "seconds": seconds[name],
            "speed_up": seconds["float32"] / seconds[name],
            "common_top_10": common(lists["float32"], lists[name]),
        }
        for name in models
    }


def measure_run(home: Path) -> dict[str, Any]:
    """Speed, common items and recall of a home's champion."""
    pointer = read_pointer(home / "releases")
    assert pointer is not None, f"{home}: no champion"
    folder = sealed_folder(home / "releases", pointer.release_id)
    retriever, known = (
        Recommender.load(folder, device="cpu", precision="float32").retriever,
        Catalog.load(folder / "catalog"),
    )
    task = Task.of(read_sample(home / "artifacts" / "histories", 1500, SEED), PLAIN)
    profiles = read_profiles(known)
    requests = [query.request(profiles.get(query.user_id, {})) for query in task.queries]
    figures: dict[str, Any] = {"release_id": pointer.release_id, "num_queries": len(task.queries)}
    lists: dict[str, list[list[str]]] = {}
    for name, model in precisions(retriever.model).items():
        start = time.process_time()
        hits = replace(retriever, model=model).retrieve(requests, K, WIDTH)
        spent, lists[name] = time.process_time() - start, [[hit.item_id for hit in one] for one in hits]
        figures[name] = {
            "ms_a_request": spent / len(task.queries) * 1e3,
            "common_top_10": common(lists["float32"], lists[name]),
            **Ruler(SEED, 1000).measure(task.queries, lists[name], task.relevant),
        }
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 SIDs, one prompt (under a minute)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--smollm", type=Path, metavar="FOLDER", help="SmolLM2: folder with the .gguf or a model")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a home after make day")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_sids, repeats = (50_000, 3) if arguments.quick else (200_000, 7)
    rows: dict[str, Any] = {}
    for batch in (1,) if arguments.quick else (1, 8):
        rows[f"llama-b{batch}"] = measure_random(random_llama(), batch, num_sids, repeats)
    if arguments.smollm:
        rows["smollm2-b1"] = measure_random(smollm2(arguments.smollm), 1, num_sids, 3)
    if arguments.run:
        rows["champion"] = measure_run(arguments.run)
    for name, row in rows.items():
        shown = {p: {k: round(v, 4) for k, v in f.items()} for p, f in row.items() if isinstance(f, dict)}
        say(f"{name}: {shown}")
    deliver(
        {
            "benchmark": "beam_precision",
            "quick": arguments.quick,
            "seed": SEED,
            "hardware": {**hardware(), "threads": 1},
            "versions": versions("numpy", "torch", "transformers"),
            "rows": rows,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
