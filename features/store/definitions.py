"""What the online store holds: a user's history and a user's profile, one row each, pushed once a day.

Nothing else belongs into this folder: `feast apply` imports every module below it. The offline sources are the places
where Feast would look for a backfill; Plumline pushes, and trains from its own artifacts.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)

user_history_push = PushSource(
    name="user_history_push",
    batch_source=FileSource(
        name="user_history_batch",
        path="data/online/user_history",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
)
user_profile_push = PushSource(
    name="user_profile_push",
    batch_source=FileSource(
        name="user_profile_batch",
        path="data/online/user_profile",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
)

# `timestamps` are epoch milliseconds as integers: Feast cuts lists of its own time type to whole seconds.
# `numbers` is JSON, column → list beside item_ids: lists of Feast's hold no nulls, and most numbers are not known.
# `version` says which push a row is of; the reader compares it, because Feast does not enforce ttl online.
user_history = FeatureView(
    name="user_history",
    entities=[user],
    ttl=timedelta(days=30),
    source=user_history_push,
    schema=[
        Field(name="item_ids", dtype=Array(String)),
        Field(name="timestamps", dtype=Array(Int64)),
        Field(name="numbers", dtype=String),
        Field(name="version", dtype=String),
    ],
)
user_profile = FeatureView(
    name="user_profile",
    entities=[user],
    ttl=timedelta(days=30),
    source=user_profile_push,
    schema=[Field(name="profile", dtype=String)],
)

online_user = FeatureService(name="online_user", features=[user_history, user_profile])
