"""The quantiser at scale, beside vector-quantize-pytorch's ResidualVQ in the same run.

run   python benchmarks/bench_quantizer.py [--quick] [--json FILE] [--items 1000000] [--full] [--folder DIR]

1. Scale: a synthetic catalogue of --items × two 384-d modalities in parquet. Training (sampling, k-means start, all
   steps) and assignment of all items (parquet read included) run in processes of their own; wall seconds, items/s, peak
   resident memory, and the reconstruction of all items. With --full also the full run (all items, four times the
   steps), whose reconstruction the sampled run is compared with; it takes about half an hour.
2. Peer: the same encoders, decoders, data, batches and optimizer around ResidualVQ (k-means start on as many items as
   ours, moving averages, its defaults otherwise) and around ours; process seconds until each reaches the worse one of
   the two final reconstructions of held-out items. Co-occurrence and masking are off: the peer has neither.
--quick: 50,000 items, fewer steps (≤ 2 minutes on 2 cores). --folder keeps the catalogue for runs after the first.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import sparse  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from models.semantic_ids.codebooks import sample_points, start_codebooks  # noqa: E402
from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams  # noqa: E402
from models.semantic_ids.normalisation import normalise  # noqa: E402
from models.semantic_ids.quantizer import fit, measure  # noqa: E402
from models.semantic_ids.rqvae import Rqvae, reconstruction_losses  # noqa: E402
from models.semantic_ids.vectors import BLOCK, VectorFile, Vectors, VectorWriter  # noqa: E402

WIDTH = 384
SCALE = QuantizerParams(batch_size=512, steps=1500, warmup_steps=300, max_items=262_144)
UNITS = {
    "train_seconds": "wall seconds",
    "train_peak_rss": "GiB resident at the most, training process",
    "assign_rate": "items / wall second, all cores, parquet read included",
    "assign_peak_rss": "GiB resident at the most, assigning process",
    "unexplained": "share of the vectors' variance left after quantisation, all items, mean of the modalities",
    "seconds_to_equal": "process seconds, one thread, to the worse of the two final held-out reconstructions",
}


class SyntheticCatalogue:
    """Topics, sub-topics and items of their own in a common space, seen through two modalities of unit vectors."""

    def __init__(self, num_items: int, seed: int, num_topics: int = 400, per_topic: int = 25, space: int = 48) -> None:
        generator = np.random.default_rng(seed)
        self.num_items, self.seed = num_items, seed
        topics = generator.normal(size=(num_topics, space))
        self.centres = np.repeat(topics, per_topic, axis=0) + 0.6 * generator.normal(
            size=(num_topics * per_topic, space)
        )
        self.views = [generator.normal(size=(space, WIDTH)) / np.sqrt(space) for _ in range(2)]
        popularity = 1 / np.arange(1, len(self.centres) + 1) ** 0.6
        self.group = generator.choice(len(self.centres), num_items, p=popularity / popularity.sum())

    def blocks(self) -> Any:
        """Vectors of BLOCK items at a time; 5% lack the second modality."""
        for start in range(0, self.num_items, BLOCK):
            generator = np.random.default_rng((self.seed, start))
            group = self.group[start : start + BLOCK]
            points = self.centres[group] + 0.4 * generator.normal(size=(len(group), self.centres.shape[1]))
            values = [points @ view + 0.3 * generator.normal(size=(len(group), WIDTH)) for view in self.views]
            values = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in values]
            there = generator.random(len(group)) >= 0.05
            values[1][~there] = 0
            ids = [f"i{row:08d}" for row in range(start, start + len(group))]
            masks = {"emb_image": np.ones(len(group), bool), "emb_text": there}
            yield Vectors(ids, {"emb_image": values[0], "emb_text": values[1]}, masks)

    def pairs(self) -> Any:
        """PAIRS: each item with the next of its sub-topic, seen twice."""
        import pyarrow as pa

        order = np.argsort(self.group, kind="stable")
        same = self.group[order[:-1]] == self.group[order[1:]]
        a, b = np.minimum(order[:-1], order[1:])[same], np.maximum(order[:-1], order[1:])[same]
        names = np.array([f"i{row:08d}" for row in range(self.num_items)])
        return pa.table({"item_a": names[a], "item_b": names[b], "count": np.full(len(a), 2)})


def _in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process; returns (result, peak GiB resident)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., Any], arguments: tuple) -> tuple[Any, float]:
    result = work(*arguments)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def train_worker(folder: Path, num_items: int, seed: int, params: QuantizerParams, out: Path) -> float:
    """Fit and save; wall seconds."""
    pairs = SyntheticCatalogue(num_items, seed).pairs()
    began = time.perf_counter()
    quantizer = fit(VectorFile(folder), pairs, params, seed)
    seconds = time.perf_counter() - began
    out.mkdir(parents=True, exist_ok=True)
    quantizer.save(out)
    return seconds


def assign_worker(folder: Path, out: Path) -> float:
    """Codes of all items; items a wall second."""
    quantizer, file = Quantizer.load(out), VectorFile(folder)
    began = time.perf_counter()
    num_items = sum(len(codes) for _, codes in quantizer.encode_blocks(file.blocks()))
    return num_items / (time.perf_counter() - began)


def measure_worker(folder: Path, out: Path) -> dict[str, float]:
    """Modality → unexplained share over all items."""
    return measure(Quantizer.load(out), VectorFile(folder))[1]


def bench_scale(folder: Path, num_items: int, params: QuantizerParams, name: str, seed: int) -> dict[str, Any]:
    """Train, assign, measure."""
    out = folder / name
    seconds, train_rss = _in_process(train_worker, folder, num_items, seed, params, out)
    rate, assign_rss = _in_process(assign_worker, folder, out)
    unexplained, _ = _in_process(measure_worker, folder, out)
    row = {
        "run": name,
        "items": num_items,
        "trained_on": min(num_items, params.max_items),
        "steps": params.steps,
        "batch_size": params.batch_size,
        "train_seconds": seconds,
        "train_peak_rss": train_rss,
        "assign_rate": rate,
        "assign_peak_rss": assign_rss,
        "unexplained": float(np.mean(list(unexplained.values()))),
        "unexplained_by_modality": unexplained,
    }
    print(
        f"{name:8s} {num_items:,} items, trained on {row['trained_on']:,}: {seconds:.0f} s, {train_rss:.2f} GiB;  "
        f"unexplained {row['unexplained']:.4f};  assignment {rate:,.0f} items/s, {assign_rss:.2f} GiB",
        flush=True,
    )
    return row


class Peer(nn.Module):
    """The encoders and decoders of `Rqvae` around ResidualVQ."""

    def __init__(self, widths: list[int], params: QuantizerParams) -> None:
        from vector_quantize_pytorch import ResidualVQ

        super().__init__()
        self.net = Rqvae(widths, (1,), hidden=params.hidden, latent=params.latent_dimensions, beta=params.beta)
        self.quantiser = ResidualVQ(
            dim=params.latent_dimensions,
            num_quantizers=len(params.codebooks),
            codebook_size=tuple(params.codebooks),
            kmeans_init=True,
            commitment_weight=params.beta,
        )

    def forward(self, inputs: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and commitment loss."""
        quantised, _, loss = self.quantiser(self.net.encode(inputs, masks))
        return torch.stack(reconstruction_losses(inputs, masks, self.net.decode(quantised))).sum(), loss.sum()


class Ours(nn.Module):
    """`Rqvae`, told like the peer."""

    def __init__(self, widths: list[int], params: QuantizerParams) -> None:
        super().__init__()
        self.net = Rqvae(
            widths, params.codebooks, hidden=params.hidden, latent=params.latent_dimensions, beta=params.beta
        )

    def forward(self, inputs: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and L_rq."""
        result = self.net.quantise(self.net.encode(inputs, masks))
        return torch.stack(reconstruction_losses(inputs, masks, self.net.decode(result.quantised))).sum(), result.loss


def bench_peer(vectors: Vectors, params: QuantizerParams, seed: int, every: int = 50) -> dict[str, Any]:
    """Curves of (process seconds, held-out unexplained share) of both, and the seconds to the worse final one."""
    held_out = 4096
    num_items = len(vectors.item_ids)
    corpus = normalise(vectors, sparse.csr_array((num_items, num_items)))
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, kind in (("ours", Ours), ("ResidualVQ", Peer)):
        torch.manual_seed(seed)
        generator = np.random.default_rng(seed)
        model = kind(list(vectors.widths.values()), params).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=params.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=params.steps)
        spent, began, curve = 0.0, time.process_time(), []
        if name == "ours":

            def latents(rows: np.ndarray, net: Rqvae = model.net) -> Tensor:
                with torch.no_grad():
                    return net.encode(*corpus.batch(rows + held_out))

            start_codebooks(model.net, latents, num_items - held_out, seed)
        else:
            rows = sample_points(num_items - held_out, max(params.codebooks), seed) + held_out
            with torch.no_grad():
                model(*corpus.batch(rows))  # its k-means looks at the first batch that it sees
        for step in range(1, params.steps + 1):
            rows = generator.integers(held_out, num_items, params.batch_size)
            reconstruction, loss = model(*corpus.batch(rows))
            optimizer.zero_grad()
            (reconstruction + loss).backward()
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == params.steps:
                spent += time.process_time() - began
                with torch.no_grad():
                    figure = model.eval()(*corpus.batch(np.arange(held_out)))[0].item() / len(corpus.inputs)
                model.train()
                curve.append((spent, figure))
                began = time.process_time()
        curves[name] = curve
    goal = max(curve[-1][1] for curve in curves.values())
    reached = {name: next(s for s, figure in curve if figure <= goal) for name, curve in curves.items()}
    result = {
        "items": num_items,
        "final_unexplained": {name: curve[-1][1] for name, curve in curves.items()},
        "total_seconds": {name: curve[-1][0] for name, curve in curves.items()},
        "goal_unexplained": goal,
        "seconds_to_equal": reached,
        "speed_up": reached["ResidualVQ"] / reached["ours"],
        "curves": curves,
    }
    final = ", ".join(f"{name} {curve[-1][1]:.4f} in {curve[-1][0]:.0f} s" for name, curve in curves.items())
    print(
        f"peer     held-out unexplained at the end: {final};  to {goal:.4f}: ours {reached['ours']:.0f} s, "
        f"ResidualVQ {reached['ResidualVQ']:.0f} s ({result['speed_up']:.2f}×)",
        flush=True,
    )
    return result


def main() -> None:
    """Run, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 items, fewer steps")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--full", action="store_true", help="also train on all items with four times the steps")
    parser.add_argument("--folder", type=Path, help="where the catalogue is kept (3 GB at a million items)")
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_items = 50_000 if arguments.quick else arguments.items
    params = SCALE.model_copy(update={"steps": 150, "warmup_steps": 50, "max_items": 20_000} if arguments.quick else {})
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)) / f"synthetic-{num_items}-{arguments.seed}"
        catalogue = SyntheticCatalogue(num_items, arguments.seed)
        if not (folder / "done").exists():
            with VectorWriter(folder, {"emb_image": WIDTH, "emb_text": WIDTH}) as writer:
                for block in catalogue.blocks():
                    writer.write(block)
            (folder / "done").touch()
        scale = [bench_scale(folder, num_items, params, "sampled", arguments.seed)]
        if arguments.full:
            full = params.model_copy(update={"max_items": num_items, "steps": 4 * params.steps})
            scale.append(bench_scale(folder, num_items, full, "full", arguments.seed))
            ratio = scale[0]["unexplained"] / scale[1]["unexplained"]
            print(f"sampled / full unexplained: {ratio:.4f} (1.02 is the limit)")
        rows = np.arange(min(num_items, 20_000 if arguments.quick else 100_000))
        peer_params = params.model_copy(update={"steps": 150 if arguments.quick else 1000})
        peer = bench_peer(VectorFile(folder).take(rows), peer_params, arguments.seed)
    if arguments.json:
        report = {
            "benchmark": "quantizer",
            "quick": arguments.quick,
            "params": params.model_dump(mode="json"),
            "units": UNITS,
            "scale": scale,
            "peer": peer,
            "hardware": hardware(),
            "versions": versions("numpy", "scikit-learn", "scipy", "torch", "pyarrow", "vector-quantize-pytorch"),
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
