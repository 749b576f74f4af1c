"""Our training loop against transformers.Trainer, in one run: same model, same examples, same precision, same threads.

    python benchmarks/bench_training.py [--quick] [--json FILE]

    ours      models/training.py: packed rows, the output head at targets only
    trainer   transformers.Trainer as it comes: rows padded to the longest of their batch, loss over labels

Both take one optimizer step on about as many tokens. The examples are windows of histories: most are full, many are
short. Tokens are counted without padding. The two take turns, so that a busy machine troubles both; the ratio is the
median over the turns. `of_peak` is 6 x parameters x tokens/s against a measured float32 matrix product.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measuring.hardware import hardware

from models.examples import Examples, ExamplesBuilder
from models.language import use_threads
from models.packing import LoopParams
from models.training import train
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


def run_ours(examples: Examples, hidden: int, layers: int, steps: int, batch: int) -> float:
    """Tokens a second of our loop."""
    per_step = batch * float(examples.lengths.mean())
    params = LoopParams(row_tokens=2 * LONGEST, rows=1, accumulation=max(1, round(per_step / (2 * LONGEST))))
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress.jsonl"
        train(
            make_model(hidden, layers),
            examples,
            params,
            chosen=np.arange(examples.num_examples),
            steps=steps,
            seed=SEED,
            stage="bench",
            progress_path=progress,
        )
        return float(json.loads(progress.read_text().splitlines()[-1])["tokens_per_s"])


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


def run_trainer(examples: Examples, hidden: int, layers: int, steps: int, batch: int) -> float:
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
            per_device_train_batch_size=batch,
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
            make_model(hidden, layers), arguments, pad, train_dataset=_Texts(examples), callbacks=[clock]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        tokens = 0
        trainer.train()
    return tokens / (clock.ended - clock.began)


def measure_peak(seconds: float) -> float:
    """Floating point operations a second of a float32 matrix product of 1024 x 1024."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - began))
    return best


def compare(name: str, hidden: int, layers: int, turns: int, steps: int, batch: int) -> dict[str, Any]:
    """Both sides in turn, on one model size."""
    examples = make_examples(20_000)
    size = sum(p.numel() for p in make_model(hidden, layers).parameters())
    ours, peer = [], []
    for turn in range(turns + 1):
        pair = (run_ours(examples, hidden, layers, steps, batch), run_trainer(examples, hidden, layers, steps, batch))
        if turn:  # the first one warms up
            ours.append(pair[0])
            peer.append(pair[1])
            say(f"{name}: ours {pair[0]:.0f}, trainer {pair[1]:.0f} tokens/s, ratio {pair[0] / pair[1]:.2f}")
    return {
        "model": name,
        "parameters": size,
        "hidden": hidden,
        "layers": layers,
        "steps_a_turn": steps,
        "examples_a_step_of_trainer": batch,
        "ours_tokens_per_s": round(statistics.median(ours), 1),
        "trainer_tokens_per_s": round(statistics.median(peer), 1),
        "ratio": round(statistics.median(o / p for o, p in zip(ours, peer, strict=True)), 3),
        "ratios": [round(o / p, 3) for o, p in zip(ours, peer, strict=True)],
        "ours_of_peak": round(6 * size * statistics.median(ours) / measure_peak(2.0), 3),
    }


def main() -> None:
    """Measure, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most two minutes on two cores: the small model only")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    told = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    threads = use_threads()
    figures = [compare("1M", 128, 4, turns=3 if told.quick else 7, steps=8 if told.quick else 20, batch=16)]
    if not told.quick:
        figures.append(compare("20M", 512, 6, turns=3, steps=6, batch=8))
    result = {
        "benchmark": "training",
        "unit": "tokens/s without padding, float32",
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
    print(f"{'model':<8}{'ours':>12}{'Trainer':>12}{'ratio':>8}{'of peak':>9}")
    for row in figures:
        print(
            f"{row['model']:<8}{row['ours_tokens_per_s']:>12.0f}{row['trainer_tokens_per_s']:>12.0f}"
            f"{row['ratio']:>8.2f}{row['ours_of_peak']:>9.2f}"
        )
    if told.json:
        told.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
