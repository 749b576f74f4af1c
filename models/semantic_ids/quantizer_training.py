"""The training loop of the residual quantiser: arrays in, a frozen quantiser out. Small nets: one thread of a CPU."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from models.semantic_ids.codebooks import ExponentialMovingAverage, revive_codes, start_codebooks
from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams, check_vectors
from models.semantic_ids.normalisation import Corpus, normalise
from models.semantic_ids.rqvae import Rqvae, contrastive_loss, reconstruction_losses
from models.semantic_ids.vectors import Vectors
from plumline.errors import InputError, RefusedError
from plumline.stage import hash_seed


def neighbours_of(pairs: pa.Table, item_ids: list[str], num_neighbours: int) -> sparse.csr_array:
    """Symmetric (N, N) similarity of the items given by PAIRS rows; of each item the most similar partners only.

    count / √(all of one item · all of the other), as in item-kNN, because by count alone the partners of nearly every
    item are the few that everybody takes. A pair stays if it is among the `num_neighbours` first of either item (ties:
    lower row).
    """
    ids = pa.array(item_ids, pa.string())
    a, b = (np.asarray(pc.index_in(pairs.column(name), value_set=ids).fill_null(-1)) for name in ("item_a", "item_b"))
    known = (a >= 0) & (b >= 0) & (a != b)
    counts = np.asarray(pairs.column("count"), np.float64)[known]
    source, target = np.concatenate([a[known], b[known]]), np.concatenate([b[known], a[known]])
    counts = np.concatenate([counts, counts])
    totals = np.bincount(source, counts, minlength=len(item_ids))
    similar = counts / np.sqrt(totals[source] * totals[target])
    order = np.lexsort((target, -similar, source))
    source, target, similar = source[order], target[order], similar[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    first = rank < num_neighbours
    one_way = sparse.csr_array(
        (similar[first], (source[first], target[first])), shape=(len(item_ids), len(item_ids)), dtype=np.float64
    )
    return sparse.csr_array(one_way.maximum(one_way.T))


def sample_rows(neighbours: sparse.csr_array, max_items: int, seed: int) -> np.ndarray:
    """Rows to train on, ascending, (≤ max_items,) int64: all of them, or half at random and half their partners.

    A random sample alone would lose most pairs, since both ends must be drawn. Partners come by similarity to the
    random half, most similar first; where they do not suffice, random rows fill up.
    """
    num_items = neighbours.shape[0]
    if num_items <= max_items:
        return np.arange(num_items)
    order = np.random.default_rng(hash_seed("quantizer", "sample", seed)).permutation(num_items)
    drawn = np.zeros(num_items, bool)
    drawn[order[: max_items // 2]] = True
    weight = neighbours.T @ drawn.astype(np.float64)
    weight[drawn] = 0.0
    partners = np.lexsort((np.arange(num_items), -weight))[: max_items - max_items // 2]
    drawn[partners[weight[partners] > 0]] = True
    rest = order[~drawn[order]][: max_items - int(drawn.sum())]
    drawn[rest] = True
    return np.flatnonzero(drawn)


def train(
    vectors: Vectors,
    neighbours: sparse.csr_array,
    params: QuantizerParams,
    seed: int,
    old_codes_NL: np.ndarray | None = None,
) -> Quantizer:
    """Train a residual quantiser. Deterministic for one machine and seed.

    neighbours: (N, N) as `neighbours_of` makes them. old_codes_NL: codes that the codebooks start from, -1 for none.
    Raises InputError for an empty corpus or a vector that is not finite, RefusedError if the loss leaves the numbers.
    """
    if not vectors.item_ids:
        raise InputError("embeddings: no items to train a quantizer on; land items first")
    check_vectors(vectors, vectors.widths)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster at this size, and the sums do not depend on the machine's load
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_seed("quantizer", seed))
            corpus = normalise(vectors, neighbours)
            model = _train(corpus, params, seed, old_codes_NL)
            return _freeze(model, corpus, vectors.widths, params)
    finally:
        torch.set_num_threads(threads)


def _train(corpus: Corpus, params: QuantizerParams, seed: int, old_codes_NL: np.ndarray | None) -> Rqvae:
    generator = np.random.default_rng(hash_seed("quantizer", "batches", seed))
    model = Rqvae(
        [values.shape[1] for values in corpus.inputs],
        params.sizes,
        hidden=params.hidden,
        latent=params.latent_dimensions,
        beta=params.beta,
        rotate=params.gradient == "rotation",
    )
    num_steps = params.warmup_steps + params.steps

    def start() -> None:
        start_codebooks(model, lambda rows: _latents(model, corpus, rows), corpus.num_items, seed, old_codes_NL)

    optimizer = torch.optim.Adam(model.parameters(), lr=params.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(num_steps, 1))
    averages = ExponentialMovingAverage(model, params.ema_decay) if params.codebook_update == "ema" else None
    chosen = [np.zeros(size, np.int64) for size in params.sizes]
    batches = _batches(corpus, params, generator)
    for step in tqdm(range(num_steps), desc="quantizer", mininterval=1.0):
        if step == params.warmup_steps:
            start()
        anchors, partners = next(batches)
        paired = np.flatnonzero(partners >= 0)
        rows = np.concatenate([anchors, partners[paired]])
        inputs, masks = corpus.batch(rows)
        z = model.encode(inputs, masks)
        if step < params.warmup_steps:
            quantised, loss = z, z.new_zeros(())
        else:
            result = model.quantise(z, _masks(params, len(anchors), paired, generator))
            quantised, loss = result.quantised, result.loss
            for counts, codes in zip(chosen, result.codes.T.numpy(), strict=True):
                counts += np.bincount(codes, minlength=len(counts))
            if averages is not None:
                averages.update(result)
            if (step - params.warmup_steps + 1) % params.revive_every == 0 and step < num_steps - params.revive_every:
                revive_codes(model, result.residuals, result.codes, chosen, generator)
        loss = loss + torch.stack(reconstruction_losses(inputs, masks, model.decode(quantised))).sum()
        if params.contrastive_weight and len(paired):
            both = np.concatenate([paired, np.arange(len(anchors), len(rows))])
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
        start()
    return model


def _batches(
    corpus: Corpus, params: QuantizerParams, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (anchors, partners), each (B,) int64; partners are drawn by similarity, -1 where an item has none."""
    graph = corpus.neighbours
    mass = np.concatenate([[0.0], np.cumsum(graph.data)])
    while True:
        order = generator.permutation(corpus.num_items)
        for start in range(0, corpus.num_items, params.batch_size):
            anchors = order[start : start + params.batch_size]
            begin, end = graph.indptr[anchors], graph.indptr[anchors + 1]
            at = mass[begin] + generator.random(len(anchors)) * (mass[end] - mass[begin])
            place = np.clip(np.searchsorted(mass, at, side="right") - 1, begin, np.maximum(end - 1, begin))
            partners = np.full(len(anchors), -1, np.int64)
            there = begin < end
            if params.contrastive_weight:
                partners[there] = graph.indices[place[there]]
            yield anchors, partners


def _masks(
    params: QuantizerParams, num_anchors: int, paired: np.ndarray, generator: np.random.Generator
) -> Tensor | None:
    """r of every item of a batch, anchors first, then the partners of `paired`, who are compared at the same level."""
    if not params.progressive_masking:
        return None
    num_levels = generator.integers(1, len(params.sizes) + 1, num_anchors)
    return torch.from_numpy(np.concatenate([num_levels, num_levels[paired]]))


def fair_negatives(neighbours: sparse.csr_array, rows: np.ndarray) -> np.ndarray:
    """(n, n) bool: True where items i and j of a batch are different items that do not co-occur. rows: (n,)."""
    together = neighbours[rows][:, rows].toarray() > 0
    return ~together & (rows[:, None] != rows[None, :])


@torch.no_grad()
def _latents(model: Rqvae, corpus: Corpus, rows: np.ndarray) -> Tensor:
    return torch.cat([model.encode(*corpus.batch(rows[i : i + 4096])) for i in range(0, len(rows), 4096)])


@torch.no_grad()
def _freeze(model: Rqvae, corpus: Corpus, widths: dict[str, int], params: QuantizerParams) -> Quantizer:
    """The trained model as a quantizer; how far its values reach on the corpus sets its fixed-point exponents."""
    weights = {name: values.detach().numpy().copy() for name, values in model.state_dict().items()}
    for place, (mean, scale) in enumerate(zip(corpus.means, corpus.scales, strict=True)):
        weights[f"mean.{place}"], weights[f"scale.{place}"] = mean, np.array([scale], np.float32)
    largest = dict.fromkeys(("input", "hidden", "modality", "latent"), 0.0)
    for start in range(0, corpus.num_items, 4096):
        inputs, masks = corpus.batch(np.arange(start, min(start + 4096, corpus.num_items)))
        hidden = [encoder[:2](x) for encoder, x in zip(model.encoders, inputs, strict=True)]  # type: ignore[index]
        parts = [encoder[2](h) for encoder, h in zip(model.encoders, hidden, strict=True)]  # type: ignore[index]
        reached = {"input": inputs, "hidden": hidden, "modality": parts, "latent": [model.encode(inputs, masks)]}
        for name, values in reached.items():
            largest[name] = max(largest[name], *(float(v.abs().max()) for v in values))
    return Quantizer.freeze("rqvae", widths, params.sizes, weights, largest)
