"""Send the service requests and check every answer against the release it names."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from plumline.errors import PlumlineError
from plumline.settings import clock_offset
from serving.pointers import read_tombstones
from serving.release import Release

HISTORY_TAIL = 50
"""Items of a history that a request carries."""


@dataclass(frozen=True)
class TrafficCheck:
    """What came back. num_invalid: items that are unknown, retired, deleted, repeated or without a SID of the table.

    latencies in ms, seen by the client. num_compared: answers compared with the same release asked in this process.
    """

    num_requests: int
    num_items: int
    num_invalid: int
    num_degraded: int
    num_compared: int
    p50_ms: float
    p99_ms: float


def check_service(
    url: str, release_folder: Path, histories: list[tuple[str, list[str]]], *, k: int = 10
) -> TrafficCheck:
    """Ask once for each (user id, history); every other request names the user alone and uses the online store.

    Raises PlumlineError at the first answer that is not 200, names another release, or differs from the same release
    asked in this process.
    """
    from features.catalog import Catalog
    from models.semantic_ids.table import SidTable
    from serving.recommender import Recommender

    release = Release.load(release_folder)
    tombstones = read_tombstones(release_folder.parent.parent)
    recommender = Recommender.load(release_folder, tombstones=tombstones)
    table = SidTable.load(release.path("sids"))
    live = Catalog.load(release.path("catalog")).live_ids()
    sids = {item: table.space.format(table.codes_of[item]) for item in live if item not in tombstones}
    latencies, num_items, num_invalid, num_degraded, num_compared = [], 0, 0, 0, 0
    with httpx.Client(base_url=url, timeout=60) as client:
        for number, (user_id, history) in enumerate(tqdm(histories, desc="requests", unit="request")):
            tail = history[-HISTORY_TAIL:]
            body: dict[str, Any] = {"user_id": user_id, "k": k}
            body |= {"history": tail, "profile": {}} if number % 2 else {}
            began = time.perf_counter()
            response = client.post("/recommend", json=body)
            latencies.append(1000 * (time.perf_counter() - began))
            if response.status_code != 200:
                raise PlumlineError(f"the service answered {response.status_code} to {body}: {response.text[:200]}")
            answer = response.json()
            if answer["release_id"] != release.release_id:
                raise PlumlineError(
                    f"the service answers with {answer['release_id']}, the champion is {release.release_id}"
                )
            items = [item["item_id"] for item in answer["items"]]
            num_items += len(items)
            num_degraded += bool(answer["degraded"])
            num_invalid += sum(sids.get(item["item_id"]) != item["sid"] for item in answer["items"])
            num_invalid += len(items) - len(set(items))
            if number % 20 == 1:
                now_ms = int((time.time() + clock_offset().total_seconds()) * 1000)  # as the service counts ages
                found = recommender.recommend(user_id=user_id, history=tail, profile={}, k=k, now_ms=now_ms)
                here = [i.item_id for i in found.items]
                num_compared += 1
                if here != items:
                    raise PlumlineError(f"the service and this process differ for {body}: {items} and {here}")
    p50, p99 = np.percentile(latencies, [50, 99])
    return TrafficCheck(len(histories), num_items, num_invalid, num_degraded, num_compared, float(p50), float(p99))
