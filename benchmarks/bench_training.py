"""Our training loop against transformers.Trainer, in one run: same model, same examples, same precision, same threads.

    python benchmarks/bench_training.py [--quick] [--precisions] [--json FILE]

    ours      models/training/loop.py: packed rows, the output head at targets only
    trainer   transformers.Trainer as it comes: rows padded to the longest of their batch, loss over labels

Both take one optimizer step on about as many tokens. The examples are windows of histories: most are full, many are
short. Tokens are counted without padding. The two take turns, so that a busy machine troubles both; the ratio is the
median over the turns. `of_peak` is what the loop itself tells: the operations that the training needs by the count of
models/training/peak.py, a second, against a matrix product measured in the same turn, in the same precision.

`--precisions` lets the loop run in float32 and in bf16 autocast instead, in turns, and prints their ratio.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState
from measuring.hardware import hardware

from models.corpus.examples import Examples, ExamplesBuilder
from models.language.model import use_threads
from models.training.loop import train
from models.training.packing import LoopParams
from models.training.peak import measure_peak
from plumline.stage import say

SEED = 17
VOCABULARY = 2560
LONGEST = 256


def make_examples(num_examples: int) -> Examples:
    """Windows of histories whose length is a power law, cut at LONGEST tokens."""
    rng = np.random.default_rng(SEED)
    lengths = np.clip((rng.pareto(1.0, num_examples) * 40).astype(int), 8, LONGEST)
    builder = ExamplesBuilder()
    for length in lengths:
        builder.add_sequence(rng.integers(1, VOCABULARY, length).astype(np.int32), "behaviour")
    return builder.build()


def make_model(hidden: int, layers: int) -> Any:
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 2),
        num_key_value_heads=max(hidden // 64, 2),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


@dataclass(frozen=True)
class Size:
    """One model. examples: that one optimizer step of the Trainer takes."""

    name: str
    hidden: int
    layers: int
    examples: int


SIZES = (Size("1M", 128, 4, 16), Size("20M", 512, 6, 8))


def run_ours(
    examples: Examples, size: Size, steps: int, precision: Literal["no", "bf16"] = "no"
) -> tuple[float, float]:
    """Tokens a second of our loop, and its share of the peak."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the precision of the run before
    measure_peak.cache_clear()  # a busy machine is another one a minute later
    per_step = size.examples * float(examples.lengths.mean())
    params = LoopParams(
        row_tokens=2 * LONGEST,
        rows=1,
        accumulation=max(1, round(per_step / (2 * LONGEST))),
        precision=precision,
        checkpoint_every=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress.jsonl"
        train(
            make_model(size.hidden, size.layers),
            examples,
            params,
            chosen=np.arange(examples.num_examples),
            steps=steps,
            seed=SEED,
            stage="bench",
            progress_path=progress,
        )
        last = json.loads(progress.read_text().splitlines()[-1])
        return float(last["tokens_per_s"]), float(last["mfu"])


class _Texts(torch.utils.data.Dataset):
    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return self.examples.num_examples

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        begin, end = self.examples.offsets[number], self.examples.offsets[number + 1]
        return {"input_ids": self.examples.tokens[begin:end].tolist()}


class _Clock(transformers.TrainerCallback):
    """Counts real tokens and times the steps alone, not the setting up."""

    began = ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


def run_trainer(examples: Examples, size: Size, steps: int) -> float:
    """Tokens a second of transformers.Trainer."""
    tokens = 0

    def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        nonlocal tokens
        longest = max(len(row["input_ids"]) for row in rows)
        tokens += sum(len(row["input_ids"]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[place, : len(row["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=size.examples,
            max_steps=steps,
            learning_rate=2e-3,
            optim="adamw_torch_fused",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=SEED,
        )
        trainer = transformers.Trainer(
            make_model(size.hidden, size.layers), arguments, pad, train_dataset=_Texts(examples), callbacks=[clock]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        tokens = 0
        trainer.train()
    return tokens / (clock.ended - clock.began)


def compare(size: Size, turns: int, steps: int) -> dict[str, Any]:
    """Both sides in turn, on one model size."""
    examples = make_examples(20_000)
    ours, peer, shares = [], [], []
    for turn in range(turns + 1):
        (mine, share), other = run_ours(examples, size, steps), run_trainer(examples, size, steps)
        if turn:  # the first one warms up
            ours.append(mine)
            peer.append(other)
            shares.append(share)
            say(f"{size.name}: ours {mine:.0f}, trainer {other:.0f} tok/s, ratio {mine / other:.2f}, peak {share:.2f}")
    return {
        **about(size),
        "steps_a_turn": steps,
        "ours_tokens_per_s": round(statistics.median(ours), 1),
        "trainer_tokens_per_s": round(statistics.median(peer), 1),
        "ratio": round(statistics.median(o / p for o, p in zip(ours, peer, strict=True)), 3),
        "ratios": [round(o / p, 3) for o, p in zip(ours, peer, strict=True)],
        "ours_of_peak": round(statistics.median(shares), 3),
        "of_peak": shares,
    }


def compare_precisions(size: Size, turns: int, steps: int) -> dict[str, Any]:
    """Our loop in float32 and in bf16, in turn."""
    examples = make_examples(20_000)
    plain, half = [], []
    for turn in range(turns + 1):
        pair = run_ours(examples, size, steps)[0], run_ours(examples, size, steps, "bf16")[0]
        if turn:
            plain.append(pair[0])
            half.append(pair[1])
            say(f"{size.name}: float32 {pair[0]:.0f}, bf16 {pair[1]:.0f} tokens/s, ratio {pair[1] / pair[0]:.2f}")
    return {
        **about(size),
        "steps_a_turn": steps,
        "float32_tokens_per_s": round(statistics.median(plain), 1),
        "bf16_tokens_per_s": round(statistics.median(half), 1),
        "bf16_ratio": round(statistics.median(h / p for h, p in zip(half, plain, strict=True)), 3),
    }


def about(size: Size) -> dict[str, Any]:
    """What the model is."""
    return {
        "model": size.name,
        "parameters": sum(p.numel() for p in make_model(size.hidden, size.layers).parameters()),
        "hidden": size.hidden,
        "layers": size.layers,
        "examples_a_step_of_trainer": size.examples,
    }


def main() -> None:
    """Measure, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most two minutes on two cores: the small model only")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--precisions", action="store_true", help="our loop in float32 against bf16 instead")
    told = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    threads = use_threads()
    figures = []
    for size in SIZES[:1] if told.quick else SIZES:
        turns, steps = (3, 8) if told.quick else (7, 20) if size is SIZES[0] else (3, 6)
        figures.append((compare_precisions if told.precisions else compare)(size, turns, steps))
    result = {
        "benchmark": "training",
        "unit": "tokens/s without padding",
        "seed": SEED,
        "quick": told.quick,
        "figures": figures,
        "hardware": {**hardware(), "threads": threads},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    names = ["float32_tokens_per_s", "bf16_tokens_per_s", "bf16_ratio"]
    if not told.precisions:
        names = ["ours_tokens_per_s", "trainer_tokens_per_s", "ratio", "ours_of_peak"]
    print("model " + "".join(f"{name:>22}" for name in names))
    for row in figures:
        print(f"{row['model']:<6}" + "".join(f"{row[name]:>22}" for name in names))
    if told.json:
        told.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
