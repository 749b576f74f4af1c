"""Our beam search against what one would use instead, in one run: same model, same prompts, same SIDs, same beams.

    python benchmarks/bench_beam.py [--quick] [--json FILE]

    ours            models/beam.py
    generate        Hugging Face generate() with num_beams and prefix_allowed_tokens_fn over a dictionary trie
    unconstrained   models/beam.py without an index: what the constraint costs
    floor           one prefill and the bare forward passes of the decoded tokens, nothing else

The ranked SIDs and scores of `ours` and `generate` are compared in the same run. Random Llama weights; SIDs of
256 x 128 x 64 x 16 codes. Times are process times on one thread, median of the repeats.
"""

import argparse
import json
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from bench_index import processor, seconds
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from models.beam import Trie, beam_search
from models.index import Index
from plumline.sid import SidSpace
from plumline.stage import num_cores, say

SPACE = SidSpace((256, 128, 64, 16))
SID_BASE = 2048
SEED = 17


def make_model(hidden: int, layers: int) -> LlamaForCausalLM:
    """A Llama of random weights, far enough from uniform that beams differ."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=SID_BASE + SPACE.num_tokens,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=2048,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def make_dictionary(codes: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """Prefix of token ids → token ids that may follow: the trie of the peer."""
    follows: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for sid in SPACE.token_ids(codes, SID_BASE).tolist():
        for level in range(len(sid)):
            follows[tuple(sid[:level])].add(sid[level])
    return {prefix: sorted(tokens) for prefix, tokens in follows.items()}


@torch.inference_mode()
def generate(
    model: Any, prompts: list[list[int]], follows: dict[tuple[int, ...], list[int]], width: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The peer. Returns (codes (K, L), scores (K,)) a request."""
    length = len(prompts[0])  # all of one length here, so that neither side pays for padding
    out = model.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(len(prompts), length, dtype=torch.int64),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=SPACE.num_levels,
        min_new_tokens=SPACE.num_levels,
        do_sample=False,
        length_penalty=0.0,
        early_stopping=False,
        prefix_allowed_tokens_fn=lambda _, ids: follows.get(tuple(ids[length:].tolist()), [1]),
        output_scores=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    codes = SPACE.codes(out.sequences[:, length:].numpy(), SID_BASE).reshape(len(prompts), width, -1)
    return list(zip(codes, out.sequences_scores.numpy().reshape(len(prompts), width), strict=True))


@torch.inference_mode()
def floor(model: LlamaForCausalLM, prompts: list[list[int]], width: int) -> None:
    """The forward passes that no beam search of this width can do without."""
    cache = DynamicCache(config=model.config)
    hidden = model.model(input_ids=torch.tensor(prompts), past_key_values=cache, use_cache=True).last_hidden_state
    model.lm_head(hidden[:, -1:])
    tokens = torch.full((len(prompts), width), SID_BASE)
    for _ in range(SPACE.num_levels - 1):
        mask = torch.ones(len(prompts), 1, width, cache.get_seq_length() + width, dtype=torch.bool)
        positions = torch.full((len(prompts), width), len(prompts[0]))
        step = model.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        model.lm_head(step.last_hidden_state)


def measure(
    model: LlamaForCausalLM, codes: np.ndarray, follows: Any, *, length: int, batch: int, width: int, repeats: int
) -> dict[str, Any]:
    """One row: process seconds a batch, and how far ours and the peer agree."""
    generator = np.random.default_rng(SEED)
    prompts = generator.integers(3, SID_BASE + SPACE.num_tokens, (batch, length)).tolist()
    trie = Trie.of(Index.build(codes, SPACE.sizes), "cpu")

    def ours(index: Trie | None) -> Any:
        return beam_search(model, prompts, space=SPACE, sid_base=SID_BASE, index=index, width=width, device="cpu")

    row: dict[str, Any] = {"prompt_tokens": length, "batch": batch, "beams": width, "num_sids": len(codes)}
    row["ours_s"] = seconds(lambda: ours(trie), repeats)
    row["unconstrained_s"] = seconds(lambda: ours(None), repeats)
    row["floor_s"] = seconds(lambda: floor(model, prompts, width), repeats)
    start = time.process_time()
    peer = generate(model, prompts, follows, width)
    row["generate_s"] = {"median": time.process_time() - start, "repeats": 1}
    row["speed_up_over_generate"] = row["generate_s"]["median"] / row["ours_s"]["median"]
    row["over_floor"] = row["ours_s"]["median"] / row["floor_s"]["median"]
    row["constraint_costs"] = row["ours_s"]["median"] / row["unconstrained_s"]["median"] - 1
    agree, difference = [], []
    for beams, (peer_codes, peer_scores) in zip(ours(trie), peer, strict=True):
        agree.append(len(set(map(tuple, beams.codes.tolist())) & set(map(tuple, peer_codes.tolist()))) / width)
        difference.append(float(np.abs(np.sort(beams.scores) - np.sort(peer_scores)).max()))
    row["same_beams_as_generate"] = min(agree)
    row["largest_score_difference"] = max(difference)
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest model and two rows (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # process time then is work, not waiting at barriers
    hidden, layers, num_sids = (128, 4, 50_000) if arguments.quick else (256, 4, 200_000)
    model = make_model(hidden, layers)
    generator = np.random.default_rng(SEED)
    codes = np.stack([generator.integers(0, size, num_sids) for size in SPACE.sizes], axis=1)
    follows = make_dictionary(codes)
    quick = [(128, 1, 50), (128, 4, 50)]
    full = [(length, batch, width) for length in (256, 1024) for batch in (1, 8) for width in (10, 50)]
    rows = []
    for length, batch, width in quick if arguments.quick else full:
        row = measure(model, codes, follows, length=length, batch=batch, width=width, repeats=5)
        rows.append(row)
        say(
            f"prompt {length}, batch {batch}, beams {width}: ours {row['ours_s']['median'] * 1e3:.0f} ms, "
            f"generate {row['speed_up_over_generate']:.1f}x, floor {row['over_floor']:.2f}x, "
            f"same beams {row['same_beams_as_generate']:.0%}, scores within {row['largest_score_difference']:.1e}"
        )
    report = {
        "benchmark": "beam",
        "units": {"*_s": "seconds of process time a batch", "over_floor": "ours / floor", "constraint_costs": "share"},
        "seed": SEED,
        "model": {"architecture": "llama", "hidden": hidden, "layers": layers, "weights": "random"},
        "hardware": {"processor": processor(), "cores": num_cores(), "threads": 1},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": rows,
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
