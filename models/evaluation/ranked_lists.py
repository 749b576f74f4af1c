"""The lists of all methods for the same queries, and the figures that compare them.

Not a stage: the middle of `models/evaluation/scores.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.evaluation import metrics
from models.evaluation.queries import Ruler, Task
from models.ranking.ranker import METHODS
from models.retrieval.held_out import PLAIN, PROTOCOLS, Lists, Query
from plumline.errors import InputError


@dataclass(frozen=True)
class Ranked:
    """tasks: by protocol. lists: method → protocol → a list of item ids for each query of the task, best first."""

    tasks: dict[str, Task]
    lists: dict[str, dict[str, list[list[str]]]]

    @staticmethod
    def of(task: str, queries: Sequence[Query], made: Lists) -> Ranked:
        """Take what was listed for the queries of one task, METHODS first. Raises InputError if a list is missing."""
        tasks = {protocol: Task.of(queries, protocol) for protocol in PROTOCOLS}
        names = dict.fromkeys([*METHODS, *(method for asked, _, method in made if asked == task)])
        try:
            lists = {
                method: {
                    protocol: [made[task, protocol, method][query.user_id, query.day] for query in one.queries]
                    for protocol, one in tasks.items()
                }
                for method in names
            }
        except KeyError:
            raise InputError(
                f"{task}: some of the requests that the ranker answered have no list of a rival; set max_queries and "
                "leave_one_out_queries of the recipe's section rivals to those of its section ranker or more"
            ) from None
        return Ranked(tasks, lists)

    def count_invalid(self, live: frozenset[str], methods: Iterable[str]) -> int:
        """Recommended items that are not live, excluded, or repeated. Asks the catalogue, not the index. Must be 0."""
        return sum(
            len(items) - len((set(items) & live) - exclude)
            for method in methods
            for protocol, task in self.tasks.items()
            for items, exclude in zip(self.lists[method][protocol], task.exclude, strict=True)
        )

    def measure(self, ruler: Ruler) -> dict[str, dict[str, Any]]:
        """method → protocol → figures."""
        return {
            method: {p: ruler.measure(task.queries, lists[p], task.relevant) for p, task in self.tasks.items()}
            for method, lists in self.lists.items()
        }

    def served_minus(self, ruler: Ruler) -> dict[str, dict[str, Any]]:
        """method → protocol → figures of the served lists less the method's, with standard errors paired by user."""
        served = self.lists["served"]
        return {
            method: {
                p: ruler.compare(task.queries, served[p], lists[p], task.relevant) for p, task in self.tasks.items()
            }
            for method, lists in self.lists.items()
            if method != "served"
        }

    def shown(self, num_items: int) -> dict[str, dict[str, float]]:
        """method → coverage and effective vocabulary (PLUM, table 2) of the lists that mask nothing."""
        counts = {method: metrics.impressions(lists[PLAIN]) for method, lists in self.lists.items()}
        return {
            method: {
                "coverage": metrics.coverage(count, num_items),
                "effective_vocabulary": metrics.effective_vocabulary(count),
            }
            for method, count in counts.items()
        }
