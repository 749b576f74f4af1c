"""Continued pre-training: teach the language model the SIDs (PLUM 2.2).

reads   corpus (cpt.npz, cpt_heldout.npz), vocabulary, quantizer (codebooks: where the SIDs' embeddings start), base
writes  weights/ (Hugging Face, safetensors), metrics.json, loss.json; beside the artifacts:
        artifacts/progress/cpt.jsonl and, until it is done, cpt.checkpoint
run     python -m models.training.cpt --params recipes/cpu_tiny.yaml --corpus … --vocabulary … --quantizer … \\
            --base= --seed 17 --out artifacts/cpt

metrics.json holds under `heldout` what the model makes of what it has not seen (models/training/cpt_eval.py).
With a base its model is adopted: a daily increment continues from one CPT checkpoint.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from models.corpus.examples import Examples
from models.language.model import LanguageParams, build_language_model, save_language_model
from models.language.words import Vocabulary
from models.training.cpt_eval import Exam
from models.training.packing import PROGRESS, LoopParams, checkpoint_of
from plumline.artifact import copy_payload
from plumline.stage import Params, hash_seed, main


class CptParams(Params):
    """The model and its pre-training."""

    steps: int = Field(default=300, ge=0)
    """Optimizer steps; the knob that changes cost. 0 keeps the initial weights."""
    model: LanguageParams = LanguageParams()
    """The language model."""
    loop: LoopParams = LoopParams()
    """The loop."""
    heldout_examples: int = Field(default=64, ge=0)
    """Most held-out examples of each kind that the model is examined on after the training; 0: it is not examined."""


def run(
    params: CptParams,
    *,
    corpus: Path,
    vocabulary: Path,
    quantizer: Path | None,
    base: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Train on the CPT examples, or adopt the base's model. See the module's docstring.

    quantizer: None starts the rows of all reserved tokens from noise.
    """
    if base is not None:
        copy_payload(base / "cpt", out)
        return
    from models.training.loop import train, write_metrics

    words, examples = Vocabulary.load(vocabulary), Examples.load(corpus / "cpt.npz")
    model = build_language_model(params.model, words, hash_seed(seed, "model"), quantizer)
    exam = Exam.load(corpus, words, params.heldout_examples)
    before = exam.perplexity(model)
    metrics = train(
        model,
        examples,
        params.loop,
        chosen=np.arange(examples.num_examples),
        steps=params.steps,
        seed=hash_seed(seed, "cpt"),
        stage="cpt",
        progress_path=PROGRESS / "cpt.jsonl",
        checkpoint=checkpoint_of("cpt"),
    )
    save_language_model(model, out / "weights")
    write_metrics(out, {**metrics, "heldout": exam.take(model, before)})


if __name__ == "__main__":
    main(run, section="cpt", unfinished=checkpoint_of("cpt"))
