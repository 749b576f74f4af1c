"""The sum of sequential item-kNN and text kNN: what goes together, and among equals what is alike.

On amazon2014_beauty it has Recall@10 .0752 with seen items masked and .0623 without (benchmarks/amazon.py): near what
TIGER published (.0648), and far from the best that was published since.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from models.baselines.item_knn import ItemKnn
from models.baselines.ranking import best_products, rank_items
from models.baselines.text_knn import TextKnn


@dataclass(frozen=True)
class KnnSum:
    """knn, text: fitted on the same histories and the same item_ids. text_weight: what a cosine of 1 is worth in counts
    of the item-kNN (which are cosines too if it was fitted so)."""

    knn: ItemKnn
    text: TextKnn
    text_weight: float = 0.03

    def __post_init__(self) -> None:
        if self.knn.item_ids != self.text.item_ids:
            raise ValueError("the two kNNs may not recommend the same items; fit both on the same item_ids")

    def rank(self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Collection[str]]) -> list[list[str]]:
        """The k items with the highest score that are not excluded; ties by popularity."""
        from scipy.sparse import hstack, vstack

        # A sum of two products is one product of matrices put side by side.
        right = vstack([self.knn.follows, self.text.words], format="csr")

        def score(chunk: slice) -> Any:
            taken, words = self.knn.recent(histories[chunk]), self.text.users(histories[chunk])
            return best_products(hstack([taken, self.text_weight * words], format="csr"), right, k, exclude[chunk])

        return rank_items(score, self.knn.weights, self.knn.item_ids, k, exclude)
