"""Fine-tuning: prompts → the SIDs of what users took next (PLUM 2.3, eq. 3).

reads   corpus (sft.npz), vocabulary, cpt, base
writes  weights/ (Hugging Face, safetensors), metrics.json, loss.json; beside the artifacts:
        artifacts/progress/sft.jsonl and, until it is done, sft.checkpoint
run     python -m models.training.sft --params recipes/cpu_tiny.yaml --corpus … --vocabulary … --cpt … \\
            --base= --seed 17 --out artifacts/sft

Without a base: `steps` on examples of all targets, from the CPT checkpoint. With one, the daily increment:
`daily_steps` on the recent and the replayed examples, from the base's weights (`start: previous`) or from the CPT
checkpoint (`start: cpt`). After `reanchor_days` increments in a row the next training is as without a base again, so
that a lineage cannot drift away from its checkpoint for ever. With `vocabulary.item_places` the model gets a SID head
(models/language/item_model.py), which a start at the CPT checkpoint draws anew.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from models.corpus.examples import Examples
from models.corpus.item_examples import ItemExamples
from models.language.model import check_vocabulary, load_language_model, save_language_model
from models.language.places import HeadParams
from models.language.words import Vocabulary
from models.training.packing import PROGRESS, LoopParams, checkpoint_of
from plumline.artifact import read_json, read_manifest
from plumline.errors import MixedReleaseError
from plumline.stage import Params, hash_seed, main


class SftParams(Params):
    """Fine-tuning, first and daily."""

    start: Literal["cpt", "previous"] = "previous"
    """Where a daily increment starts: at the CPT checkpoint, or at the base release's weights."""
    steps: int = Field(default=400, ge=0)
    """Optimizer steps without a base."""
    daily_steps: int = Field(default=80, ge=0)
    """Optimizer steps of a daily increment."""
    daily_learning_rate: float | None = Field(default=None, gt=0.0)
    """Learning rate of a daily increment; null takes the loop's."""
    reanchor_days: int = Field(default=0, ge=0)
    """Every so many daily trainings one is anew from the CPT checkpoint, at full length; 0: never."""
    loop: LoopParams = LoopParams()
    """The loop."""
    head: HeadParams = HeadParams()
    """The SID head, with vocabulary.item_places."""


def run(
    params: SftParams, *, corpus: Path, vocabulary: Path, cpt: Path, base: Path | None, seed: int, out: Path
) -> None:
    """Train on the SFT examples. See the module's docstring.

    Raises MixedReleaseError if the base was trained from another CPT checkpoint than `cpt`.
    """
    increments = count_increments(params, base)
    weights = start_weights(params, cpt, base, anew=not increments)
    from models.language.item_model import ItemModel, load_item_model, save_item_model, start_item_model
    from models.training.loop import train, write_metrics

    words = Vocabulary.load(vocabulary)
    examples: Examples | ItemExamples
    model: Any
    if words.shape.item_places:
        examples = ItemExamples.load(corpus / "sft.npz")
        chosen = examples.of_kinds("older", "replay")
        if weights.parent == cpt:
            model = start_item_model(load_language_model(weights), words, params.head, seed)
        else:
            model = load_item_model(weights, words)
    else:
        examples, model = Examples.load(corpus / "sft.npz"), load_language_model(weights)
        chosen = np.arange(examples.num_examples)
    check_vocabulary(model, words)
    loop, steps = params.loop, params.steps
    if increments:
        steps, chosen = params.daily_steps, examples.of_kinds("recent", "replay")
        loop = loop.model_copy(update={"learning_rate": params.daily_learning_rate or loop.learning_rate})
    metrics = train(
        model,
        examples,
        loop,
        chosen=chosen,
        steps=steps,
        seed=hash_seed(seed, "sft"),
        stage="sft",
        progress_path=PROGRESS / "sft.jsonl",
        checkpoint=checkpoint_of("sft"),
        anchor=cpt / "weights",
    )
    save = save_item_model if isinstance(model, ItemModel) else save_language_model
    save(model, out / "weights")
    start = "previous" if weights.parent != cpt else "cpt"
    write_metrics(out, {**metrics, "start": start, "increments": increments})


def count_increments(params: SftParams, base: Path | None) -> int:
    """Daily increments in a row, this one with them; 0 for a training at full length from the CPT checkpoint."""
    if base is None:
        return 0
    before = read_json(base / "sft" / "metrics.json").get("increments", 0)  # older releases did not count
    return 0 if params.reanchor_days and before + 1 >= params.reanchor_days else before + 1


def start_weights(params: SftParams, cpt: Path, base: Path | None, *, anew: bool = False) -> Path:
    """The folder of weights to start from; a base must descend from the same CPT checkpoint, whatever the start."""
    if base is None:
        return cpt / "weights"
    wanted, found = read_manifest(cpt).digest, read_manifest(base / "sft").parents.get("cpt")
    if wanted != found:
        raise MixedReleaseError(
            f"{base / 'sft'} was trained from the CPT checkpoint {found}, {cpt} is {wanted}; "
            "give the base's own cpt, or train anew without a base"
        )
    return (cpt if anew or params.start == "cpt" else base / "sft") / "weights"


if __name__ == "__main__":
    main(run, section="sft", unfinished=checkpoint_of("sft"))
