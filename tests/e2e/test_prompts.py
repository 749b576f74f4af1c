"""Training, scores and the service tell the model the same: 400 held-out requests through HTTP, token by token.

With prompts that tell what they can: titles, and numbers of the events of a history.
"""

import math
from datetime import UTC, date, datetime, time, timedelta

import httpx
import pytest
import yaml

from features.histories import read_queries
from features.online import PushedFeatures
from flows.commands.day import clock_at
from models.language.words import read_profiles
from models.retrieval.held_out import to_queries
from plumline.schema import NUMBERS
from serving.deploy import serve_process
from serving.recommender import Recommender

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_REQUESTS = 400


def known(value):
    """null for a number that nobody knows."""
    return None if math.isnan(value) else value


@pytest.mark.parametrize(
    "told",
    [
        {"item_places": True},
        {"item_places": False, "context_features": ["title"], "max_title_tokens": 6},
    ],
    ids=["places", "tokens"],
)
def test_held_out_requests_are_the_same_tokens_through_http_as_in_scores(new_company, told):
    from features.catalog import Catalog

    company = new_company
    recipe = company.home / "recipes" / "tiny.yaml"
    sections = yaml.safe_load(recipe.read_text())
    sections["vocabulary"] |= {"history_features": list(NUMBERS), **told}
    recipe.write_text(yaml.safe_dump(sections))
    company.run("bootstrap", "--as-of", "2024-01-12")
    artifacts = company.home / "artifacts"
    assert PushedFeatures.find(company.home) is not None
    folder = company.home / "releases" / "sealed" / company.json("status")["champion"]
    retriever = Recommender.load(folder, device="cpu").retriever
    words, profiles = retriever.vocabulary, read_profiles(Catalog.load(artifacts / "catalog"))
    queries = to_queries(read_queries(artifacts / "histories"))
    assert len(queries) >= NUM_REQUESTS
    queries = sorted(queries, key=lambda query: query.day)[:NUM_REQUESTS]
    first = date(2024, 1, 12) + timedelta(days=1)  # what the store was pushed is what was known on its morning
    num_online = num_told = 0
    for day in sorted({query.day for query in queries}):
        noon = datetime.combine(day, time(12, 0, 20), UTC)
        with clock_at(noon), serve_process(company.home) as server, httpx.Client(base_url=server.url) as client:
            for query in (one for one in queries if one.day == day):
                profile = profiles.get(query.user_id, {})
                wanted = list(words.spell(retriever.prompt(query.request(profile)).token_ids))
                body = {"user_id": query.user_id, "show_prompt": True, "k": 1}
                numbers = {name: values.tolist() for name, values in query.numbers.items()}
                history = [
                    {"item_id": item, "timestamp": at, **{name: known(values[n]) for name, values in numbers.items()}}
                    for n, (item, at) in enumerate(query.history)
                ]
                num_told += sum(token.startswith("<watch_ratio_") for token in wanted)
                given = client.post("/recommend", json={**body, "history": history, "profile": profile}, timeout=60)
                assert given.json()["prompt"] == wanted, query
                asked = client.post("/recommend", json=body, timeout=60).json()
                if day == first and not asked["degraded"]:
                    assert asked["prompt"] == wanted, query
                    num_online += 1
    assert num_online > 10
    assert num_told > 1000
