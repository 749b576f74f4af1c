"""The HTTP service in this process: answers, refusals, hot swap, traffic. test_deploy.py starts the real one."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from models.retrieval.beam import Choice
from serving.pointers import add_tombstones, promote, rollback
from serving.recommender import Recommender
from serving.traffic import TrafficWriter, read_traffic


def forget_bentoml_metrics() -> None:
    """BentoML registers its metrics once an app; a second app in one process would be a duplicate."""
    from prometheus_client import REGISTRY

    for collector, names in list(REGISTRY._collector_to_names.items()):
        if any(name.startswith("bentoml_service_") for name in names):
            REGISTRY.unregister(collector)


@pytest.fixture(scope="module")
def served(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a service over a home whose champion is the first release; no online features were pushed."""
    home = real.new_home(tmp_path_factory.mktemp("served"))
    promote(home / "releases", real.ids[0], expected=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMLINE_HOME", str(home))
        patch.setenv("BENTOML_HOME", str(home / "bentoml"))
        from serving.service import Plumline

        forget_bentoml_metrics()
        with TestClient(Plumline.to_asgi()) as client:
            yield client, home


@pytest.fixture
def client(served: Any) -> TestClient:
    return served[0]


@pytest.fixture
def home(served: Any) -> Path:
    return served[1]


def wait_for(client: TestClient, release_id: str) -> None:
    deadline = time.monotonic() + 10
    while client.get("/release").json()["release_id"] != release_id:
        assert time.monotonic() < deadline, "the swap did not come"
        time.sleep(0.05)


def test_answers_what_the_recommender_answers(client: TestClient, real: Any) -> None:
    asked = {"history": ["item001", "nothing", "item007"], "k": 5, "profile": {"country": "France"}}
    answer = client.post("/recommend", json=asked)
    assert answer.status_code == 200
    body = answer.json()
    expected = Recommender.load(real.folder(0)).recommend(**asked)
    assert [item["item_id"] for item in body["items"]] == [item.item_id for item in expected.items]
    assert body["items"][0] == {
        "item_id": expected.items[0].item_id,
        "title": expected.items[0].title,
        "sid": expected.items[0].sid,
        "score": pytest.approx(expected.items[0].score, abs=1e-4),
        "why": [
            {"part": r.part, "share": pytest.approx(r.share), "items": list(r.items), "words": r.words}
            for r in expected.items[0].why
        ],
    }
    assert body["items"][0]["why"]
    assert body["ranked"]
    beams = client.post("/recommend", json={**asked, "retrieval_only": True}).json()
    assert not beams["ranked"]
    assert [item["why"] for item in beams["items"]] == [[]] * 5
    expected = Recommender.load(real.folder(0)).recommend(**asked, retrieval_only=True)
    assert [item["item_id"] for item in beams["items"]] == [item.item_id for item in expected.items]
    assert (body["release_id"], body["degraded"], body["reason"]) == (real.ids[0], False, "")
    assert len(body["request_id"]) == 32


def test_timed_histories_in_both_spellings(client: TestClient) -> None:
    at = datetime(2011, 10, 30, 12, tzinfo=UTC)
    as_number = [
        {"item_id": "item001", "timestamp": int(at.timestamp() * 1000)},
        {"item_id": "item002", "timestamp": int(at.timestamp() * 1000) + 86_400_000},
    ]
    as_text = [
        {"item_id": "item001", "timestamp": "2011-10-30T12:00:00Z"},
        {"item_id": "item002", "timestamp": "2011-10-31T12:00:00"},
    ]
    answers = [client.post("/recommend", json={"history": history}).json()["items"] for history in (as_number, as_text)]
    assert answers[0] == answers[1]


def test_rules_caps_and_samples(client: TestClient, real: Any) -> None:
    recommender = Recommender.load(real.folder(0))
    seen = {"history": ["item001", "item007"], "k": 9, "rule": "seen | fresh(1w)"}
    body = client.post("/recommend", json=seen).json()
    assert {item["item_id"] for item in body["items"]} == {"item001", "item007"}  # nothing of 2011 is fresh today
    assert (body["reason"], body["num_allowed"]) == ("short", 2)
    assert body["detail"].startswith("2 of 9 items: seen | fresh(7d) leaves 2 of 57 items")
    asked = {"history": ["item001"], "k": 5, "max_per_branch": 1, "temperature": 1.5, "seed": 7}
    body = client.post("/recommend", json=asked).json()
    expected = recommender.recommend(history=["item001"], k=5, choice=Choice(cap=1, temperature=1.5, seed=7))
    assert [item["item_id"] for item in body["items"]] == [item.item_id for item in expected.items]


def test_cold_and_degraded(client: TestClient) -> None:
    assert client.post("/recommend", json={}).json()["reason"] == "cold"
    body = client.post("/recommend", json={"user_id": "u1"}).json()
    assert (body["degraded"], body["reason"], len(body["items"])) == (True, "unavailable", 10)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"k": 0}, "k: Input should be greater than or equal to 1"),
        ({"k": 101}, "k: Input should be less than or equal to 100"),
        ({"k": "5"}, "k: Input should be a valid integer"),
        ({"k": 1e999}, "k: Input should be a valid integer"),
        ({"colour": 1}, "'colour' is no field; there are user_id, history"),
        ({"history": ["x"] * 1001}, "history: List should have at most 1000 items"),
        ({"history": "item001"}, "history: Input should be a valid array"),
        ({"history": [{"item_id": "a"}]}, "history.0"),
        ({"history": ["a", {"item_id": "b", "timestamp": 5}]}, "1 of 2 items have a timestamp"),
        ({"user_id": ""}, "user_id: String should have at least 1 character"),
        ({"profile": {"a": 1}}, "profile.a: Input should be a valid string"),
        ({"rule": "seen"}, "rule allows no item: seen leaves 0 of 57 items"),
        ({"rule": "price < cheap"}, "rule, character 9"),
        ({"rule": "(" * 2001}, "rule: String should have at most 2000 characters"),
        ({"max_per_branch": 0}, "max_per_branch: Input should be greater than or equal to 1"),
        ({"max_per_branch": 2**63}, "max_per_branch: Input should be less than or equal to 100"),
        ({"seed": 1}, "seed 1 without a temperature"),
        ({"rule": ""}, "rule: String should have at least 1 character"),
        ({"max_per_branch": 1, "branch_level": 9}, "cap_level 9"),
        ({"temperature": 1e-45}, "temperature: Input should be greater than or equal to 0.001"),
        ([], "body: Input should be an object"),
        (None, "body: Input should be an object"),
    ],
)
def test_bad_bodies_get_one_line(client: TestClient, body: Any, line: str) -> None:
    answer = client.post("/recommend", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("field", "most", "beyond"),
    [
        ("k", 100, 101),
        ("user_id", "u" * 256, "u" * 257),
        ("context_item", "i" * 256, "i" * 257),
        ("history", ["i"] * 1000, ["i"] * 1001),
        ("history", [{"item_id": "i" * 256, "timestamp": 1}], [{"item_id": "i" * 257, "timestamp": 1}]),
        ("profile", {f"c{n}": "x" for n in range(64)}, {f"c{n}": "x" for n in range(65)}),
        ("rule", "x" * 2000, "x" * 2001),
        ("max_per_branch", 100, 101),
        ("branch_level", 26, 27),
        ("temperature", 100, 100.1),
        ("temperature", 0.001, 0.0009),
        ("seed", 2**63 - 1, 2**63),
    ],
)
def test_how_much_a_body_may_ask(field: str, most: Any, beyond: Any) -> None:
    from serving.bodies import RecommendRequest

    assert RecommendRequest.model_validate_json(json.dumps({field: most})).problem == ""
    assert RecommendRequest.model_validate_json(json.dumps({field: beyond})).problem.startswith(field)


@pytest.mark.parametrize(("field", "most"), [("request_id", 64), ("user_id", 256), ("item_id", 256), ("action", 32)])
def test_how_much_a_reaction_may_say(field: str, most: int) -> None:
    from serving.bodies import FeedbackRequest

    said = {"request_id": "r", "user_id": "u", "item_id": "i", "action": "click"}
    assert FeedbackRequest.model_validate_json(json.dumps({**said, field: "x" * most})).problem == ""
    assert FeedbackRequest.model_validate_json(json.dumps({**said, field: "x" * (most + 1)})).problem.startswith(field)


def test_a_request_waits_ten_seconds_among_sixty_three_others() -> None:
    """What BentoML is told; its own middleware does the rest (504 and 429)."""
    from serving.service import Plumline

    traffic = Plumline.config["traffic"]
    assert (traffic["timeout"], traffic["max_concurrency"]) == (10, 64)


class SleepError(Exception):
    """The service sleeps."""


def seconds_slept(monkeypatch: pytest.MonkeyPatch, task: Any) -> float:
    """How long a task of the service sleeps when it first does. The service of `client` sleeps on in its thread."""
    slept: list[float] = []
    real_sleep, here = asyncio.sleep, threading.get_ident()

    async def sleep(seconds: float) -> None:
        if threading.get_ident() != here:
            await real_sleep(seconds)
            return
        slept.append(seconds)
        raise SleepError

    with monkeypatch.context() as patch, pytest.raises(SleepError):
        patch.setattr(asyncio, "sleep", sleep)
        asyncio.run(task)
    return slept[0]


def test_looks_for_a_champion_twice_a_second_and_for_features_every_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Any
) -> None:
    from serving.service import Plumline

    monkeypatch.setenv("PLUMLINE_HOME", str(tmp_path))
    worker = Plumline.inner()
    assert seconds_slept(monkeypatch, worker._watch()) == 0.5
    assert seconds_slept(monkeypatch, worker._open_features()) == 10
    assert worker._features_settled


@pytest.mark.parametrize("text", ["{", "", "\x00", '{"k": NaN}', '{"user_id": "\ud800"}', "[" * 10_000])
def test_malformed_json_is_the_callers_fault(client: TestClient, text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    answer = client.post("/recommend", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == (200 if text == "" else 400)  # BentoML takes no body for {}


NUMBERS = {"watch_ratio": 0.5, "watch_time_s": 31.5, "rating": -2.0}


def test_what_the_model_read_is_said_to_who_asks(client: TestClient) -> None:
    asked = {"history": ["item001", "item007"], "k": 3}
    assert client.post("/recommend", json=asked).json()["prompt"] == []
    told = client.post("/recommend", json={**asked, "show_prompt": True}).json()["prompt"]
    assert (told[0], told[1], told[-1]) == ("<bos>", "<history>", "<next>")


def test_feedback_and_answers_become_traffic(client: TestClient, home: Path, real: Any) -> None:
    answer = client.post("/recommend", json={"user_id": "u9", "history": ["item001"], "k": 3}).json()
    reaction = {"request_id": answer["request_id"], "user_id": "u9", "item_id": answer["items"][0]["item_id"]}
    said = client.post("/feedback", json={**reaction, "action": "play", **NUMBERS})
    assert said.json() == {"request_id": answer["request_id"], "release_id": real.ids[0]}
    alone = client.post("/feedback", json={"user_id": "u9", "item_id": "item002", "action": "click"}).json()
    assert len(alone["request_id"]) == 32
    deadline = time.monotonic() + 15
    rows: list[dict[str, Any]] = []
    while len(rows) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
        table = read_traffic(home / "data" / "traffic", date(2020, 1, 1), date(2100, 1, 1))
        rows = [row for row in table.to_pylist() if row["user_id"] == "u9"]
    assert [row["action"] for row in rows] == ["served", "play", "click"]
    assert rows[0]["item_ids"] == [item["item_id"] for item in answer["items"]]
    assert rows[0]["sids"] == [item["sid"] for item in answer["items"]]
    told = [[[r["part"], round(r["share"], 4), r["items"]] for r in item["why"]] for item in answer["items"]]
    assert [json.loads(line) for line in rows[0]["why"]] == told
    assert (rows[0]["history_length"], rows[0]["num_invalid"], rows[0]["degraded"]) == (1, 0, False)
    assert rows[0]["latency_ms"] > 0
    assert (rows[1]["request_id"], rows[1]["scores"]) == (answer["request_id"], [])
    assert {name: rows[1][name] for name in NUMBERS} == NUMBERS
    assert {rows[row][name] for row in (0, 2) for name in NUMBERS} == {None}


def test_a_reaction_to_what_no_release_knows_is_refused(client: TestClient, real: Any) -> None:
    """The case feedback_unknown."""
    answer = client.post("/feedback", json={"user_id": "u1", "item_id": "nosuch0", "action": "click"})
    assert answer.status_code == 400
    assert answer.json() == {"error": f"item_id: 'nosuch0' is no item of {real.ids[0]}"}


@pytest.mark.parametrize("timestamp", [2**63, -(2**63) - 1, 10**400, 253_402_300_800_000])
def test_a_time_that_is_none_is_bad_input(client: TestClient, timestamp: int) -> None:
    """The case request_timestamp: it was a 500."""
    answer = client.post("/recommend", json={"history": [{"item_id": "item001", "timestamp": timestamp}]})
    assert answer.status_code == 400
    assert "is no time in epoch milliseconds" in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("body", [{}, {"user_id": "u", "item_id": "i", "action": "DROP TABLE"}, {"x": 1}])
def test_bad_feedback(client: TestClient, body: Any) -> None:
    answer = client.post("/feedback", json=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_pages(client: TestClient, real: Any) -> None:
    assert client.get("/release").json() == {"release_id": real.ids[0], "as_of": "2011-10-31", "fencing": 1}
    assert client.get("/livez").status_code == 200
    front = client.get("/")
    assert front.status_code == 404
    assert "googletagmanager" not in front.text
    assert "POST /recommend" in front.json()["error"]
    assert client.get("/nothing").status_code == 404
    spec = client.get("/docs.json").json()
    assert {"/recommend", "/feedback"} <= set(spec["paths"])


def test_ready_once_features_are_known_to_be_absent(client: TestClient) -> None:
    deadline = time.monotonic() + 30
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_look_that_fails_is_not_the_last(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def fails(_: TrafficWriter, at: float) -> bool:
        looks.append(at)
        raise RuntimeError("nobody thought of this")

    with monkeypatch.context() as patch:
        patch.setattr(TrafficWriter, "is_due", fails)
        deadline = time.monotonic() + 10
        while len(looks) < 2:
            assert time.monotonic() < deadline, "the watch ended with its first failure"
            time.sleep(0.1)


def test_hot_swap_rollback_and_deletion(client: TestClient, home: Path, real: Any) -> None:
    releases = home / "releases"
    promote(releases, real.ids[1], expected=1)
    wait_for(client, real.ids[1])
    best = client.post("/recommend", json={"history": ["item001"]}).json()
    assert best["release_id"] == real.ids[1]
    rollback(releases)
    wait_for(client, real.ids[0])
    gone = client.post("/recommend", json={"history": ["item001"]}).json()["items"][0]["item_id"]
    add_tombstones(releases, [gone])
    deadline = time.monotonic() + 5
    while True:
        items = client.post("/recommend", json={"history": ["item001"], "k": 100}).json()["items"]
        if gone not in {item["item_id"] for item in items}:
            break
        assert time.monotonic() < deadline, "a deleted item was served for 5 s"
