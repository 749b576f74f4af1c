"""The BentoML service: the champion behind HTTP, swapped without a pause.

    POST /recommend   {"user_id"?, "history"?: [id or {"item_id", "timestamp", "watch_ratio"?, "watch_time_s"?,
                       "rating"?, "price"?, "quantity"?}], "context_item"?, "k"?, "profile"?, "rule"?,
                       "max_per_branch"?, "branch_level"?, "temperature"?, "seed"?, "exclude_seen"?,
                       "retrieval_only"?, "show_prompt"?}
                      → {"request_id", "release_id", "items": [{"item_id", "title", "sid", "score", "why": [{"part",
                         "share", "items", "words"}]}], "degraded", "reason", "detail", "num_allowed", "ranked",
                       "prompt"}
    POST /feedback    {"request_id"?, "user_id", "item_id", "action", "watch_ratio"?, "watch_time_s"?, "rating"?}
                      → {"request_id", "release_id"}
    GET  /release     {"release_id", "as_of", "fencing"}      GET /livez /readyz /metrics
    run               plumline serve, or: bentoml serve serving.service:Plumline   (PLUMLINE_HOME, PLUMLINE_WORKERS)

Bad input, and a reaction to an item that the release does not know, is 400 with {"error": one line}. Ready means: a
verified champion is loaded, and the online features were opened or found absent; until then a request that needs them
is answered without and says `degraded`.
Every worker looks at the champion pointer and at the tombstones twice a second, by itself: an admin call would reach
one worker only. A release that cannot be loaded changes nothing but a counter.
"""

import asyncio
import contextlib
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import bentoml
from prometheus_client import Counter, Histogram
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plumline.errors import InputError, MissingArtifactError, PlumlineError
from plumline.schema import NUMBERS
from plumline.settings import clock_offset, get_settings
from plumline.stage import say
from serving.bodies import FeedbackRequest, FeedbackResponse, Item, Reason, RecommendRequest, RecommendResponse
from serving.champion import Champion
from serving.recommender import HistoryItem, Recommendation, RecommendedItem, Recommender
from serving.traffic import SERVED, TrafficRow, TrafficWriter, why_json

if TYPE_CHECKING:
    from features.online import OnlineFeatures

POLL_SECONDS = 0.5
_FEATURES_RETRY_SECONDS = 10.0
_TIMEOUT_SECONDS = 10
_MAX_WAITING = 64

REQUESTS = Counter("plumline_requests", "Requests by route and status.", ["route", "status"])
INVALID = Counter("plumline_invalid_items", "Items that the model proposed and that were not fit to serve.")
DEGRADED = Counter("plumline_degraded", "Answers made without something that should have been known.", ["reason"])
SWAP_FAILURES = Counter("plumline_swap_failures", "Looks at champion, tombstones and traffic that failed.")
SWAPS = Counter("plumline_swaps", "Champions loaded.")
LATENCY = Histogram(
    "plumline_latency_seconds",
    "From the parsed request to the answer.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)


async def _release(_: Request) -> JSONResponse:
    service = bentoml.get_current_service()
    champion = service.champion if service is not None else None
    if champion is None or champion.recommender is None:
        return JSONResponse({"error": _NO_CHAMPION}, 503)
    release = champion.recommender.release
    return JSONResponse(
        {"release_id": release.release_id, "as_of": release.as_of.isoformat(), "fencing": champion.fencing}
    )


async def _no_page(_: Request) -> JSONResponse:
    return JSONResponse({"error": "no page here; POST /recommend, GET /release, /readyz, /metrics, /docs.json"}, 404)


_NO_CHAMPION = "no champion is loaded; plumline bootstrap makes the first release, plumline status shows it"
# BentoML's own page at / loads a tag manager from the net; a mounted route comes before it
_PAGES = Starlette(routes=[Route("/release", _release, methods=["GET"]), Route("/", _no_page)])


@bentoml.service(
    name="plumline",
    workers=get_settings().workers,
    http={"host": "127.0.0.1"},
    traffic={"timeout": _TIMEOUT_SECONDS, "max_concurrency": _MAX_WAITING * get_settings().workers},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(_PAGES, path="/", name="pages")
class Plumline:
    """One worker: a champion, the online features, a traffic writer, and one thread that decodes."""

    def __init__(self) -> None:
        home = get_settings().home.resolve()
        self.home = home
        self.champion = Champion(home / "releases", on_swap=SWAPS.inc, on_failure=SWAP_FAILURES.inc)
        self.features: OnlineFeatures | None = None
        self._features_settled = False
        self._traffic = TrafficWriter(home / "data" / "traffic", "worker")
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode", initializer=_use_one_thread)
        self._tasks: list[asyncio.Task[None]] = []

    @bentoml.on_startup
    async def start(self) -> None:
        """Load the champion before the port answers; then watch it, and open the online features meanwhile."""
        await self._refresh()
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._open_features())]

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Write down the traffic that waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._decoder.shutdown(wait=True, cancel_futures=True)
        self._traffic.flush()
        if self.features is not None:
            self.features.close()

    async def __is_ready__(self) -> bool:
        """A champion is loaded, and whether there are online features is known."""
        return self.champion.recommender is not None and self._features_settled

    @bentoml.api(route="/recommend")
    async def recommend(self, request: RecommendRequest, /) -> RecommendResponse:
        """Items for a user or a history."""
        began = time.perf_counter()
        recommender = self.champion.recommender  # once: one answer, one release
        if request.problem:
            return _refuse("recommend", 400, request.problem)
        if recommender is None:
            return _refuse("recommend", 503, _NO_CHAMPION)
        try:
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._decoder, self._answer, recommender, request)
        except InputError as error:
            return _refuse("recommend", 400, str(error))
        seconds = time.perf_counter() - began
        request_id = uuid.uuid4().hex
        self._log(request_id, request.user_id, answer, seconds)
        return RecommendResponse(
            request_id=request_id,
            release_id=answer.release_id,
            items=[_item(one) for one in answer.items],
            degraded=answer.degraded,
            reason=answer.reason,
            detail=answer.detail,
            num_allowed=answer.num_allowed,
            ranked=answer.ranked,
            prompt=list(answer.prompt),
        )

    @bentoml.api(route="/feedback")
    async def feedback(self, request: FeedbackRequest, /) -> FeedbackResponse:
        """Write down what a user did."""
        if request.problem:
            return _refuse("feedback", 400, request.problem)
        recommender = self.champion.recommender
        if recommender is None:
            return _refuse("feedback", 503, _NO_CHAMPION)
        if not recommender.knows(request.item_id):
            shown = request.item_id[:80]
            return _refuse("feedback", 400, f"item_id: {shown!r} is no item of {recommender.release.release_id}")
        now = _now()
        row = TrafficRow(
            request_id=request.request_id or uuid.uuid4().hex,
            timestamp_ms=int(now * 1000),
            user_id=request.user_id,
            release_id=recommender.release.release_id,
            action=request.action,
            item_ids=(request.item_id,),
            watch_ratio=request.watch_ratio,
            watch_time_s=request.watch_time_s,
            rating=request.rating,
        )
        self._traffic.append(row, now)
        REQUESTS.labels("feedback", "200").inc()
        return FeedbackResponse(request_id=row.request_id, release_id=row.release_id)

    def _answer(self, recommender: Recommender, request: RecommendRequest) -> Recommendation:
        history: list[HistoryItem] | None = None
        numbers: dict[str, list[float | None]] = {}
        if request.history is not None:
            history = [e if isinstance(e, str) else (e.item_id, e.timestamp_ms) for e in request.history]
            numbers = {name: [getattr(e, name, None) for e in request.history] for name in NUMBERS}
            numbers = {name: values for name, values in numbers.items() if any(v is not None for v in values)}
        from models.retrieval.beam import Choice

        return recommender.recommend(
            user_id=request.user_id,
            history=history,
            numbers=numbers,
            profile=request.profile,
            context_item=request.context_item,
            k=request.k,
            features=self.features,
            rule=request.rule,
            now_ms=int(_now() * 1000),
            exclude_seen=request.exclude_seen,
            retrieval_only=request.retrieval_only,
            show_prompt=request.show_prompt,
            choice=Choice(request.max_per_branch, request.branch_level, request.temperature, request.seed),
        )

    def _log(self, request_id: str, user_id: str | None, answer: Recommendation, seconds: float) -> None:
        REQUESTS.labels("recommend", "200").inc()
        LATENCY.observe(seconds)
        INVALID.inc(answer.num_invalid)
        if answer.degraded:
            DEGRADED.labels(answer.reason).inc()
        now = _now()
        row = TrafficRow(
            request_id=request_id,
            timestamp_ms=int(now * 1000),
            user_id=user_id,
            release_id=answer.release_id,
            action=SERVED,
            item_ids=tuple(item.item_id for item in answer.items),
            sids=tuple(item.sid for item in answer.items),
            scores=tuple(item.score for item in answer.items),
            why=tuple(why_json(item) for item in answer.items),
            history_length=answer.history_length,
            num_invalid=answer.num_invalid,
            degraded=answer.degraded,
            latency_ms=1000 * seconds,
        )
        self._traffic.append(row, now)

    async def _refresh(self) -> None:
        """Look and load in a thread of its own: a swap must stop neither the event loop nor the answers."""
        await asyncio.to_thread(self.champion.refresh, time.monotonic())

    async def _watch(self) -> None:
        """Twice a second: champion, tombstones, traffic. Whatever goes wrong once, the next look is taken."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._refresh()
                if self._traffic.is_due(_now()):
                    await asyncio.to_thread(self._traffic.flush)
            except Exception as error:  # a watch that ended in silence would serve the old release for ever
                SWAP_FAILURES.inc()
                say(f"service: a look at champion and traffic failed ({type(error).__name__}: {error})")

    async def _open_features(self) -> None:
        """Open the online features, and again while there are none: the first push may come after the start."""
        from features.online import OnlineFeatures

        while self.features is None:
            try:
                self.features = await asyncio.to_thread(OnlineFeatures.open, self.home)
            except MissingArtifactError:
                pass  # nothing was pushed yet; a request that needs features is degraded and says so
            except PlumlineError as error:
                say(f"service: no online features ({error})")
            except Exception as error:  # a store that is down is no reason not to answer
                say(f"service: no online features ({type(error).__name__}: {error})")
            self._features_settled = True
            if self.features is None:
                await asyncio.sleep(_FEATURES_RETRY_SECONDS)


def _item(item: RecommendedItem) -> Item:
    why = [Reason(part=r.part, share=r.share, items=list(r.items), words=r.words) for r in item.why]
    return Item(item_id=item.item_id, title=item.title, sid=item.sid, score=item.score, why=why)


def _now() -> float:
    """Epoch seconds; in a simulation of past days those of the day that is played."""
    return time.time() + clock_offset().total_seconds()


def _use_one_thread() -> None:
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


def _refuse(route: str, status: int, line: str) -> Any:
    """An answer that is an error with a body of ours: BentoML's own are a list or say nothing."""
    REQUESTS.labels(route, str(status)).inc()
    return JSONResponse({"error": line}, status)
