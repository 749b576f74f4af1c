"""The training loop of the residual quantiser: arrays in, weights out. Small nets, so one thread of a CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from models.embeddings import Vectors
from models.quantizer import QuantizerParams, check_vectors
from models.rqvae import Rqvae, contrastive_loss, reconstruction_losses
from plumline.errors import InputError, RefusedError
from plumline.stage import hash_seed

_KMEANS_ITEMS = 65_536


@dataclass(frozen=True)
class Trained:
    """weights: what model.safetensors holds. reconstruction: modality → share of its variance left unexplained."""

    weights: dict[str, np.ndarray]
    reconstruction: dict[str, float]


@dataclass(frozen=True)
class Corpus:
    """What is trained on. N items, M modalities.

    inputs: M × (N, D) float32, centred and scaled to mean squared length 1. masks: M × (N,) bool. means, scales: M ×
    what made them so. neighbours: (N, N) sparse counts, symmetric.
    """

    inputs: list[Tensor]
    masks: list[Tensor]
    means: list[np.ndarray]
    scales: list[np.ndarray]
    neighbours: sparse.csr_array

    def batch(self, rows: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and masks of some rows."""
        index = torch.from_numpy(rows)
        return [values[index] for values in self.inputs], [mask[index] for mask in self.masks]


def neighbours_of(pairs: pa.Table, item_ids: list[str], num_neighbours: int) -> sparse.csr_array:
    """Symmetric (N, N) counts of PAIRS rows between the items given; of each item the most frequent partners only.

    A pair stays if it is among the `num_neighbours` first of either item (ties: lower row).
    """
    ids = pa.array(item_ids, pa.string())
    a, b = (np.asarray(pc.index_in(pairs.column(name), value_set=ids).fill_null(-1)) for name in ("item_a", "item_b"))
    known = (a >= 0) & (b >= 0) & (a != b)
    counts = np.asarray(pairs.column("count"), np.float64)[known]
    source, target = np.concatenate([a[known], b[known]]), np.concatenate([b[known], a[known]])
    counts = np.concatenate([counts, counts])
    order = np.lexsort((target, -counts, source))
    source, target, counts = source[order], target[order], counts[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    first = rank < num_neighbours
    one_way = sparse.csr_array(
        (counts[first], (source[first], target[first])), shape=(len(item_ids), len(item_ids)), dtype=np.float64
    )
    return sparse.csr_array(one_way.maximum(one_way.T))


def train(vectors: Vectors, neighbours: sparse.csr_array, params: QuantizerParams, seed: int) -> Trained:
    """Train a quantiser. neighbours: (N, N) co-occurrence counts. Deterministic for one machine and seed.

    Raises InputError for an empty corpus or a vector that is not finite, RefusedError if the loss leaves the numbers.
    """
    if not vectors.item_ids:
        raise InputError("embeddings: no items to train a quantizer on; land items first")
    check_vectors(vectors, {name: values.shape[1] for name, values in vectors.modalities.items()})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster at this size, and the sums do not depend on the machine's load
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_seed("quantizer", seed))
            return _train(_corpus(vectors, neighbours), list(vectors.modalities), params, seed)
    finally:
        torch.set_num_threads(threads)


def _train(corpus: Corpus, names: list[str], params: QuantizerParams, seed: int) -> Trained:
    generator = np.random.default_rng(hash_seed("quantizer", "batches", seed))
    model = Rqvae(
        [values.shape[1] for values in corpus.inputs],
        params.codebooks,
        hidden=params.hidden,
        latent=params.latent_dimensions,
        beta=params.beta,
    )
    num_steps = params.warmup_steps + params.steps
    optimizer = torch.optim.Adam(model.parameters(), lr=params.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(num_steps, 1))
    chosen = [np.zeros(size, np.int64) for size in params.codebooks]
    batches = _batches(corpus, params, generator)
    for step in tqdm(range(num_steps), desc="quantizer", mininterval=1.0):
        if step == params.warmup_steps:
            start_codebooks(model, corpus, seed)
        anchors, partners = next(batches)
        rows = np.concatenate([anchors, np.where(partners < 0, anchors, partners)])
        inputs, masks = corpus.batch(rows)
        z = model.encode(inputs, masks)
        if step < params.warmup_steps:
            quantised, loss = z, z.new_zeros(())
        else:
            num_levels = int(generator.integers(len(params.codebooks))) + 1 if params.progressive_masking else None
            result = model.quantise(z, num_levels)
            quantised, loss = result.quantised, result.loss
            for counts, codes in zip(chosen, result.codes.T.numpy(), strict=True):
                counts += np.bincount(codes, minlength=len(counts))
            if (step - params.warmup_steps + 1) % params.revive_every == 0 and step < num_steps - params.revive_every:
                revive_codes(model, result.residuals, result.codes, chosen, generator)
        loss = loss + torch.stack(reconstruction_losses(inputs, masks, model.decode(quantised))).sum()
        paired = np.flatnonzero(partners >= 0)
        if params.contrastive_weight and len(paired):
            both = np.concatenate([paired, paired + len(anchors)])
            allowed = torch.from_numpy(fair_negatives(corpus.neighbours, rows[both]))
            left, right = quantised[torch.from_numpy(both)].chunk(2)
            loss = loss + params.contrastive_weight * contrastive_loss(left, right, allowed, params.temperature)
        if not torch.isfinite(loss):
            raise RefusedError(f"quantizer: the loss is {loss.item()} at step {step}; lower quantizer.learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if params.steps == 0:
        start_codebooks(model, corpus, seed)
    return Trained(_weights(model, corpus), _unexplained(model, corpus, names))


def _corpus(vectors: Vectors, neighbours: sparse.csr_array) -> Corpus:
    """Centre each modality and scale it as a whole: its strong dimensions stay strong."""
    inputs, masks, means, scales = [], [], [], []
    for name, values in vectors.modalities.items():
        mask = vectors.masks[name]
        there = values[mask].astype(np.float64)
        mean = there.mean(axis=0) if len(there) else np.zeros(values.shape[1])
        variance = ((there - mean) ** 2).sum(axis=1).mean() if len(there) else 0.0
        mean, scale = mean.astype(np.float32), np.float32(1 / np.sqrt(variance) if variance > 1e-12 else 1.0)
        inputs.append(torch.from_numpy(((values - mean) * scale * mask[:, None]).astype(np.float32)))
        masks.append(torch.from_numpy(mask))
        means.append(mean)
        scales.append(np.array([scale]))
    return Corpus(inputs, masks, means, scales, neighbours)


def _batches(
    corpus: Corpus, params: QuantizerParams, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (anchors, partners), each (B,) int64; partners are drawn by count, -1 where an item has none."""
    graph, num_items = corpus.neighbours, len(corpus.masks[0])
    mass = np.concatenate([[0.0], np.cumsum(graph.data)])
    while True:
        order = generator.permutation(num_items)
        for start in range(0, num_items, params.batch_size):
            anchors = order[start : start + params.batch_size]
            begin, end = graph.indptr[anchors], graph.indptr[anchors + 1]
            at = mass[begin] + generator.random(len(anchors)) * (mass[end] - mass[begin])
            place = np.clip(np.searchsorted(mass, at, side="right") - 1, begin, np.maximum(end - 1, begin))
            partners = np.full(len(anchors), -1, np.int64)
            there = begin < end
            partners[there] = graph.indices[place[there]]
            yield anchors, partners


def fair_negatives(neighbours: sparse.csr_array, rows: np.ndarray) -> np.ndarray:
    """(n, n) bool: True where items i and j of a batch are different items that do not co-occur. rows: (n,)."""
    together = neighbours[rows][:, rows].toarray() > 0
    return ~together & (rows[:, None] != rows[None, :])


@torch.no_grad()
def _latents(model: Rqvae, corpus: Corpus, rows: np.ndarray) -> Tensor:
    return torch.cat([model.encode(*corpus.batch(rows[i : i + 4096])) for i in range(0, len(rows), 4096)])


@torch.no_grad()
def start_codebooks(model: Rqvae, corpus: Corpus, seed: int) -> None:
    """k-means of the residuals, level after level.

    A level with more codes than distinct residuals repeats the last one: a repeated code is never the first nearest.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    random_state = hash_seed("kmeans", seed) % 2**32
    num_items = len(corpus.masks[0])
    rows = np.sort(np.random.default_rng(random_state).permutation(num_items)[:_KMEANS_ITEMS])
    residual = _latents(model, corpus, rows).numpy()
    for codebook in model.codebooks:
        distinct = np.unique(residual, axis=0)
        if len(distinct) > len(codebook):
            with threadpool_limits(limits=1):
                fitted = KMeans(len(codebook), n_init=1, max_iter=25, random_state=random_state).fit(residual)
            centres = fitted.cluster_centers_.astype(np.float32)
        else:
            centres = distinct[np.minimum(np.arange(len(codebook)), len(distinct) - 1)]
        codebook.copy_(torch.from_numpy(centres))
        residual = residual - centres[torch.cdist(torch.from_numpy(residual), codebook).argmin(dim=1).numpy()]


@torch.no_grad()
def revive_codes(
    model: Rqvae, residuals: list[Tensor], codes_BL: Tensor, chosen: list[np.ndarray], generator: np.random.Generator
) -> None:
    """Move codes that were never chosen onto residuals of this batch that lie far from theirs; resets `chosen`.

    residuals: L × (B, Z), codes_BL: their codes. chosen: L × (K,) how often each code was taken since the last time.
    """
    for level, (codebook, counts) in enumerate(zip(model.codebooks, chosen, strict=True)):
        dead = np.flatnonzero(counts == 0)
        error = (residuals[level] - codebook[codes_BL[:, level]]).square().sum(1).double().numpy()
        wanted = int(min(len(dead), (error > 0).sum()))
        if wanted:
            picked = generator.choice(len(error), wanted, replace=False, p=error / error.sum())
            codebook[torch.from_numpy(dead[:wanted])] = residuals[level][torch.from_numpy(picked)]
        counts[:] = 0


def _weights(model: Rqvae, corpus: Corpus) -> dict[str, np.ndarray]:
    weights = {name: values.detach().numpy().copy() for name, values in model.state_dict().items()}
    for place, (mean, scale) in enumerate(zip(corpus.means, corpus.scales, strict=True)):
        weights[f"mean.{place}"], weights[f"scale.{place}"] = mean, scale
    return weights


@torch.no_grad()
def _unexplained(model: Rqvae, corpus: Corpus, names: list[str]) -> dict[str, float]:
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for start in range(0, len(corpus.masks[0]), 4096):
        inputs, masks = corpus.batch(np.arange(start, min(start + 4096, len(corpus.masks[0]))))
        quantised = model.quantise(model.encode(inputs, masks)).quantised
        losses = reconstruction_losses(inputs, masks, model.decode(quantised))
        there = np.array([float(mask.sum()) for mask in masks])
        sums += np.array([float(loss) for loss in losses]) * there
        counts += there
    return {name: round(float(s / max(n, 1)), 6) for name, s, n in zip(names, sums, counts, strict=True)}
