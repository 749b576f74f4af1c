"""WHERE Plumline runs: the PLUMLINE_* environment. Nothing here is part of an artifact's key.

What is learned does not depend on it, its last bits do: another device, other threads or processes sum floats in
another order.

The only module that reads the environment. `docs/settings.md` lists every field; a test compares the two.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One field an environment variable, `PLUMLINE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="PLUMLINE_", frozen=True, extra="ignore")

    home: Path = Field(default=Path(), description="Folder with dvc.yaml, data/, artifacts/ and releases/.")
    device: str = Field(default="auto", description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Weights of the model that serves; what artifacts hold is made in float32."
    )
    counting_memory: str = Field(
        default="2GB",
        description="Memory in which DuckDB counts what follows what; more goes to disk.",
    )
    threads: int = Field(default=0, ge=0, description="Torch threads of one process; 0: half of the cores.")
    processes: int = Field(default=1, ge=1, description="Processes of one training (cpt, sft), each with its device.")
    port: int = Field(default=3000, ge=0, le=65535, description="Port of `plumline serve`; 0 takes a free one.")
    workers: int = Field(default=1, ge=1, description="Processes that answer requests, each with a model of its own.")
    registry_remote: str = Field(
        default="", description="DVC remote of the release registry (a folder or URL); empty: releases/remote."
    )
    feature_store: Path | None = Field(
        default=None, description="A feature_store.yaml to use instead of features/store/feature_store.yaml."
    )
    stage_timeout_s: int = Field(default=21_600, gt=0, description="Seconds after which a flow ends a stage's process.")
    clock_offset_s: float = Field(
        default=0.0, description="Simulations only: seconds added to the clock of the service and the flows."
    )
    crash_at: str = Field(default="", description="Tests only: `<stage>:<point>[:n]`, SIGKILL at the n-th passing.")


def get_settings() -> Settings:
    """Read the environment now."""
    return Settings()


@dataclass(frozen=True)
class Process:
    """Which of the processes of a stage this is. index: 0 is the one that publishes. on_machine: their number here."""

    index: int
    count: int
    on_machine: int


def this_process() -> Process:
    """What torchrun told this process; one of one otherwise."""
    index, count, here = (int(os.environ.get(name, rest)) for name, rest in _TORCHRUN.items())
    return Process(index, count, here)


_TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}


def clock_offset() -> timedelta:
    """What to add to the real time: nothing, but in a simulation of past days."""
    return timedelta(seconds=get_settings().clock_offset_s)


# Every vendor's switch against sending anything home, with the value that was seen to work ("1" does not stop BentoML).
_QUIET = {
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # "Loading weights" of a file that loads in a blink
    "ITERATIVE_DO_NOT_TRACK": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_environment() -> dict[str, str]:
    """The variables that switch telemetry of all vendors off, for this process and its children."""
    return dict(_QUIET)


def switch_telemetry_off() -> None:
    """Put `quiet_environment` in force unless the user set a variable; call it before a vendor is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def child_environment(**extra: str) -> dict[str, str]:
    """The environment of a child process: ours, telemetry off, and `extra` on top."""
    return {**quiet_environment(), **os.environ, **extra}
