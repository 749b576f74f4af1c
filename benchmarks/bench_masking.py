"""The masking step alone: ours against a re-implementation of STATIC's published kernel, same nodes, same numbers.

    python benchmarks/bench_masking.py [--quick] [--json FILE]

STATIC (seed 000, abstract 5; its public PyTorch kernel) keeps the trie as rows of [token, next state] pairs, gathers
the largest branch of the level for every beam, gathers their log-probabilities and masks the padding; its first two
levels are dense: a mask and a table of states, indexed by the parent's token. Written anew here from that description;
it gets the slice of the vocabulary of its level, as ours does, so that no time goes into tokens that cannot come.

    mask    log-probabilities of the level and beams → scored candidates
    step    the same, and the choice of the best beams with their codes and states

Both sides' best scores are compared in every row. Random SIDs; beams stand at random nodes of the level. Process time
on one thread, median over rounds in which both take turns. The paper's setting is 2048^8, 70 beams and a batch of 2.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.report import deliver  # noqa: E402
from models.retrieval.beam import _best  # noqa: E402
from models.retrieval.bits import Bits  # noqa: E402
from models.retrieval.csr import Index  # noqa: E402
from models.retrieval.trie import Allowed, State, Trie, expand  # noqa: E402
from plumline.stage import say  # noqa: E402

SEED = 17
DEAD = float("-inf")
DENSE_LEVELS = 2
CALLS = 20  # of one timed round


@dataclass(frozen=True, eq=False)
class Static:
    """STATIC's arrays for one level. dense: (nodes, size) next state, -1 none; else pairs (E, 2) with row pointers."""

    dense: torch.Tensor | None
    pairs: torch.Tensor
    pointers: torch.Tensor
    limit: int

    @staticmethod
    def of(index: Index, level: int) -> "Static":
        """From the same trie, its states numbered as our nodes."""
        pointers = index.children[level].astype(np.int64)
        codes = index.codes[level]
        pairs = np.stack([codes.astype(np.int32), np.arange(len(codes), dtype=np.int32)], axis=1)
        counts = np.diff(pointers)
        dense = None
        if level < DENSE_LEVELS:
            dense = np.full((len(counts), index.sizes[level]), -1, dtype=np.int32)
            dense[np.repeat(np.arange(len(counts)), counts), codes] = pairs[:, 1]
        return Static(
            None if dense is None else torch.from_numpy(dense),
            torch.from_numpy(pairs),
            torch.from_numpy(pointers),
            int(counts.max()),
        )

    def mask(self, logp: torch.Tensor, states: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scored candidates (B, K, C), their tokens and next states. logp: (B, K, S); states, scores: (B, K)."""
        if self.dense is not None:
            following = self.dense[states]
            tokens = torch.arange(logp.shape[-1]).expand_as(following)
            return torch.where(following >= 0, logp, DEAD) + scores[..., None], tokens, following
        starts = self.pointers[states]
        lengths = self.pointers[states + 1] - starts
        offsets = torch.arange(self.limit)
        found = self.pairs[(starts[..., None] + offsets).clamp(max=len(self.pairs) - 1)]
        tokens, following = found[..., 0], found[..., 1]
        gathered = logp.gather(-1, tokens.long())
        masked = torch.where(offsets < lengths[..., None], gathered, torch.tensor(DEAD))
        return masked + scores[..., None], tokens, following

    def step(self, logp: torch.Tensor, states: torch.Tensor, scores: torch.Tensor, width: int) -> torch.Tensor:
        """The best beams' scores; with their parents, tokens and states, as its loop keeps them."""
        candidates, tokens, following = self.mask(logp, states, scores)
        flat = candidates.flatten(1)
        best = flat.topk(min(width, flat.shape[1]), dim=-1)
        best.indices // candidates.shape[-1]
        tokens.flatten(1).gather(1, best.indices)
        following.flatten(1).gather(1, best.indices)
        return best.values


def ours_step(trie: Trie, level: int, logp: torch.Tensor, state: State, scores: torch.Tensor, width: int) -> Any:
    """The same with our trie.py and beam.py; the best beams come in the order of their codes."""
    candidates = expand(trie, None, level, state, logp, scores)
    keep = _best(candidates.score, width)
    candidates.chosen(keep.clamp(min=0))
    return candidates.score.gather(1, keep.clamp(min=0))


def rounds(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds a call: median and spread over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 1):
        for name, work in works.items():
            start = time.process_time()
            for _ in range(CALLS):
                work()
            if number:
                times[name].append((time.process_time() - start) / CALLS * 1e3)
    return {n: {"median": statistics.median(t), "min": min(t), "max": max(t)} for n, t in times.items()}


def measure(index: Index, trie: Trie, level: int, batch: int, width: int, repeats: int) -> dict[str, Any]:
    """One level: both ways, and ours with a rule that half of the items pass."""
    generator = torch.Generator().manual_seed(SEED + level)
    num_nodes = len(index.children[level]) - 1
    beams = min(width, num_nodes)
    states = torch.randint(num_nodes, (batch, beams), generator=generator).sort(dim=1).values
    logp = torch.log_softmax(torch.randn(batch, beams, index.sizes[level], generator=generator), dim=-1)
    scores = torch.randn(batch, beams, generator=generator)
    static, state = Static.of(index, level), State(states)
    half = Bits.of(np.random.default_rng(SEED).random(index.num_items) < 0.5)
    ruled = [Allowed(half)] * batch
    works: dict[str, Callable[[], Any]] = {
        "static_mask": lambda: static.mask(logp, states, scores),
        "ours_mask": lambda: expand(trie, None, level, state, logp, scores),
        "static_step": lambda: static.step(logp, states, scores, width),
        "ours_step": lambda: ours_step(trie, level, logp, state, scores, width),
        "ours_mask_with_a_rule": lambda: expand(trie, None, level, state, logp, scores, ruled),
    }
    mine = ours_step(trie, level, logp, state, scores, width).sort(dim=1, descending=True).values
    theirs = static.step(logp, states, scores, width)
    same = min(mine.shape[1], theirs.shape[1])
    assert torch.equal(mine[:, :same], theirs[:, :same]), f"level {level}: the best scores differ"
    found = rounds(works, repeats)
    return {
        "level": level,
        "nodes": num_nodes,
        "largest_branch": static.limit,
        "ours_is_dense": trie.tables[level] is not None,
        "ms": found,
        "mask_speed_up": found["static_mask"]["median"] / found["ours_mask"]["median"],
        "step_speed_up": found["static_step"]["median"] / found["ours_step"]["median"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 SIDs instead of ten million (under a minute)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_sids = 200_000 if arguments.quick else 10_000_000
    cases = [((256, 128, 64, 16), 1, 50), ((256, 128, 64, 16), 8, 50), ((2048,) * 8, 2, 70)]
    rows, index, trie = [], None, None
    for sizes, batch, width in cases:
        if index is None or trie is None or index.sizes != sizes:
            generator = np.random.default_rng(SEED)
            codes = np.stack([generator.integers(0, size, num_sids, dtype=np.int32) for size in sizes], axis=1)
            index = Index.build(codes, sizes)
            trie = Trie.of(index, "cpu")
        with torch.inference_mode():
            levels = [
                measure(index, trie, level, batch, width, 5 if arguments.quick else 15) for level in range(len(sizes))
            ]
        total = {name: sum(level["ms"][name]["median"] for level in levels) for name in levels[0]["ms"]}
        rows.append(
            {
                "sid_levels": sizes,
                "num_sids": num_sids,
                "batch": batch,
                "beams": width,
                "levels": levels,
                "ms_all_levels": total,
                "mask_speed_up": total["static_mask"] / total["ours_mask"],
                "step_speed_up": total["static_step"] / total["ours_step"],
            }
        )
        say(
            f"{len(sizes)} levels of {sizes[0]} …, {num_sids:,} SIDs, batch {batch}, beams {width}: mask "
            f"{total['ours_mask']:.2f} ms (STATIC's {total['static_mask']:.2f}, {rows[-1]['mask_speed_up']:.2f}x), "
            f"step {total['ours_step']:.2f} ms ({total['static_step']:.2f}, {rows[-1]['step_speed_up']:.2f}x), "
            f"mask with a rule {total['ours_mask_with_a_rule']:.2f} ms"
        )
    report = {
        "benchmark": "masking",
        "quick": arguments.quick,
        "units": {"ms": "milliseconds of process time a call, one thread", "*_speed_up": "STATIC's / ours"},
        "seed": SEED,
        "hardware": {**hardware(), "threads": 1},
        "versions": versions("numpy", "torch"),
        "rows": rows,
    }
    deliver(report, arguments.json)


if __name__ == "__main__":
    main()
