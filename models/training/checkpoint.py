"""The state of an unfinished training on the disk, so that a killed one goes on to the same bytes.

A checkpoint is an artifact like any other (written beside, sealed with the sha256 of every file, put in place by one
rename), so a half-written one is never seen and a damaged one is found out. It lies beside the progress file, since a
killed stage loses its scratch folder.

    state.safetensors   weights/…, exp_avg/…, exp_avg_sq/…, adam_step/…, average/…
    notes.json          step, cursor, sums, loss curve
    manifest.json       key: whose training this is; params: what it was told

There is no state of a random generator in it: every draw follows from (seed, step, pass). torch from the first line:
import it late.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.corpus.examples import Examples
from models.corpus.item_examples import ItemExamples
from plumline import artifact
from plumline.errors import ArtifactError, InputError
from plumline.stage import code_version


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds. tensors: by name, on the CPU. notes: plain JSON."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any]


class Checkpoint:
    """The one checkpoint of a stage.

    folder: where it lies. stage: noun for messages. key: whose training this is (`identify`). told: name → value of
    everything that a resumed training must share with the one that was killed. say: where to tell what was found.
    step: of what lies there, 0 before that is known.
    """

    step = 0

    def __init__(
        self, folder: Path, *, stage: str, key: str, told: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.folder, self.stage, self.key, self.told, self.say = folder, stage, key, dict(told), say

    def find(self) -> Found | None:
        """The state to go on from, or None: there is none, it is damaged, or of another training (it says so).

        Raises InputError, naming the value, if the training is the same and was told something else.
        """
        if not self.folder.exists():
            return None
        try:
            manifest = artifact.verify(self.folder)
        except ArtifactError as error:
            self.say(f"{self.stage}: begins anew, for its checkpoint is damaged: {error}")
            return None
        if manifest.key != self.key:
            self.say(f"{self.stage}: begins anew, for {self.folder} is of other data, weights, seed or code")
            return None
        for name in sorted(manifest.params.keys() | self.told.keys()):
            before, now = manifest.params.get(name), self.told.get(name)
            if before != now:
                raise InputError(
                    f"{self.stage}: {name} is {now}, but {self.folder} is of a training with {before}; "
                    f"set it to {before}, or delete the folder to begin anew"
                )
        notes = artifact.read_json(self.folder / "notes.json")
        self.step = notes["step"]
        self.say(f"{self.stage}: goes on after step {notes['step']}, from {self.folder}")
        return Found(load_file(self.folder / "state.safetensors"), notes)

    def save(self, tensors: Mapping[str, Tensor], notes: dict[str, Any]) -> None:
        """Replace the checkpoint; the old one stands until the new one does. notes: plain JSON with a `step`."""
        with artifact.writing(self.folder, stage=f"{self.stage}.checkpoint", key=self.key, params=self.told) as scratch:
            save_file({name: value.contiguous() for name, value in tensors.items()}, scratch / "state.safetensors")
            artifact.write_json(scratch / "notes.json", notes)
        self.step = notes["step"]

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def identify(
    model: Any, examples: Examples | ItemExamples, chosen: np.ndarray, seed: int, stage: str, anchor: Path | None = None
) -> str:
    """Whose training it is: hash of the start weights, the examples that take part, seed, stage, anchor and code."""
    digest = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    about: dict[str, Any] = {"stage": stage, "seed": seed, "code": code_version("models.training.loop")}
    about["anchor"] = artifact.fingerprint(anchor) if anchor is not None else "none"
    about["torch"] = torch.__version__
    about["config"] = repr(sorted(config.items()))
    digest.update(artifact.canonical_json(about).encode())
    for array in (chosen, *(getattr(examples, field.name) for field in fields(examples))):
        digest.update(np.ascontiguousarray(array).data)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
