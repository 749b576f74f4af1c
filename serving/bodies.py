"""What goes in and out of the service as JSON: requests that say in one line what is wrong with them, and answers."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from models.retrieval.rules import MAX_CHARACTERS
from plumline.schema import NUMBERS
from serving.recommender import MAX_K

MAX_HISTORY = 1000
LATEST_MS = 253_402_300_799_999
"""Epoch milliseconds of the last instant of the year 9999; a time before 1970 may lie as far away."""


class Body(BaseModel):
    """A JSON body that says in one line what is wrong with it, instead of BentoML's list of pydantic's errors."""

    model_config = ConfigDict(extra="forbid")
    _problem: str = PrivateAttr(default="")

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> "Body":
        """Parse; what cannot be parsed gives a body whose `problem` says why (BentoML calls this)."""
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            body = cls.model_construct()
            body._problem = cls._one_line(error)
            return body

    @property
    def problem(self) -> str:
        """What is wrong, "" if nothing is."""
        return self._problem

    @classmethod
    def _one_line(cls, error: ValidationError) -> str:
        found = error.errors(include_context=False, include_input=False, include_url=False)
        first = next((one for one in found if one["type"] == "number"), found[0])  # else: that it is no id, either
        where = ".".join(map(str, first["loc"])) or "body"
        if first["type"] == "extra_forbidden":
            return f"{where[:80]!r} is no field; there are {', '.join(cls.model_fields)}"
        return f"{where[:80]}: {first['msg']}"


class HistoryEntry(BaseModel):
    """An item and when it was used: epoch milliseconds, or an ISO 8601 time (UTC if it names no zone).

    The numbers of the event, as in EVENTS, where they are known; a release whose prompts tell none ignores them.
    """

    model_config = ConfigDict(extra="forbid")
    item_id: str = Field(min_length=1, max_length=256)
    timestamp: int | datetime
    watch_ratio: float | None = None
    watch_time_s: float | None = None
    rating: float | None = None
    price: float | None = None
    quantity: float | None = None

    @field_validator(*NUMBERS, mode="before")
    @classmethod
    def _check_number(cls, value: Any) -> Any:
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300):
            return value
        told = str(value)[:40]
        raise PydanticCustomError("number", "{told} is no finite number; give one, or null", {"told": told})

    @field_validator("timestamp", mode="after")
    @classmethod
    def _check_time(cls, value: int | datetime) -> int | datetime:
        if isinstance(value, datetime) or abs(value) <= LATEST_MS:
            return value
        told = str(value)[:40]
        raise PydanticCustomError("number", "{told} is no time in epoch milliseconds", {"told": told})

    @property
    def timestamp_ms(self) -> int:
        """Epoch milliseconds."""
        if isinstance(self.timestamp, int):
            return self.timestamp
        zoned = self.timestamp if self.timestamp.tzinfo else self.timestamp.replace(tzinfo=UTC)
        return int(zoned.timestamp() * 1000)


class RecommendRequest(Body):
    """Who asks. Without `history` the online features of `user_id` are read; with neither, the answer is a cold one.

    rule: what every item must fulfil, as in `models/retrieval/rules.py`. max_per_branch, branch_level, temperature,
    seed: see `models/retrieval/beam.py`, Choice. exclude_seen: leave out what is in the history. retrieval_only: the
    model's beams as they are, without memory and ranker. show_prompt: also say what the language model read.
    """

    user_id: str | None = Field(default=None, min_length=1, max_length=256)
    history: list[str | HistoryEntry] | None = Field(default=None, max_length=MAX_HISTORY)
    context_item: str | None = Field(default=None, min_length=1, max_length=256)
    k: int = Field(default=10, ge=1, le=MAX_K, strict=True)
    profile: dict[str, str] | None = Field(default=None, max_length=64)
    rule: str | None = Field(default=None, min_length=1, max_length=MAX_CHARACTERS)
    max_per_branch: int | None = Field(default=None, ge=1, le=MAX_K, strict=True)
    branch_level: int = Field(default=1, ge=1, le=26, strict=True)
    temperature: float | None = Field(default=None, ge=0.001, le=100)
    seed: int = Field(default=0, ge=0, lt=2**63, strict=True)
    exclude_seen: bool = Field(default=False, strict=True)
    retrieval_only: bool = Field(default=False, strict=True)
    show_prompt: bool = Field(default=False, strict=True)


class Reason(BaseModel):
    """A part that spoke for an item. share: of its score, the parts' shares sum to 1. items: of the history."""

    part: str
    share: float
    items: list[str]
    words: str


class Item(BaseModel):
    """One recommended item. score: the ranker's, comparable within this answer (`retrieval_only`: log probability)."""

    item_id: str
    title: str | None
    sid: str
    score: float
    why: list[Reason]


class RecommendResponse(BaseModel):
    """The answer; `release_id` is the one release that made all of it. num_allowed: items that the rule allows.

    ranked: whether a ranker made the order; else these are beams. prompt: what the language model read, token by token,
    if that was asked for.
    """

    request_id: str
    release_id: str
    items: list[Item]
    degraded: bool
    reason: str
    detail: str
    num_allowed: int
    ranked: bool
    prompt: list[str]


class FeedbackRequest(Body):
    """What a user did. request_id: of the answer it came from, if it came from one."""

    request_id: str | None = Field(default=None, min_length=1, max_length=64)
    user_id: str = Field(min_length=1, max_length=256)
    item_id: str = Field(min_length=1, max_length=256)
    action: str = Field(min_length=1, max_length=32, pattern="^[a-z_]+$")
    watch_ratio: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    watch_time_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    rating: float | None = Field(default=None, allow_inf_nan=False)


class FeedbackResponse(BaseModel):
    """What was written down."""

    request_id: str
    release_id: str
