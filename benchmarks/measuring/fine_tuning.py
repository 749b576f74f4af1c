"""Fine-tuning as the stage `sft` does it, in this process: both forms of examples and of models behind one door."""

from pathlib import Path
from typing import Any

import numpy as np

from models.corpus.examples import Examples
from models.corpus.item_examples import ItemExamples
from models.corpus.material import EPOCH, CorpusParams, Material
from models.corpus.sft_examples import sft_examples
from models.corpus.sft_item_examples import sft_item_examples
from models.language.item_model import ItemModel, load_item_model, save_item_model, start_item_model
from models.language.model import load_language_model, save_language_model
from models.language.words import Vocabulary
from models.training.sft import SftParams


def make_examples(params: CorpusParams, material: Material, as_of: Any, rng: np.random.Generator) -> Any:
    """Examples of fine-tuning as known on a day, in the form that the vocabulary asks for."""
    write = sft_item_examples if material.words.shape.item_places else sft_examples
    return write(params, material, (as_of - EPOCH).days, rng)


def of_first_training(examples: Examples | ItemExamples) -> np.ndarray:
    """Rows of a training without a base: all, but not twice what windows of the increment repeat."""
    if isinstance(examples, ItemExamples):
        return examples.of_kinds("older", "replay")
    return np.arange(examples.num_examples)


def open_model(weights: Path, words: Vocabulary, params: SftParams, seed: int, *, from_cpt: bool) -> Any:
    """A model to be trained on: that of a checkpoint of fine-tuning, or of continued pre-training with a new head."""
    if not words.shape.item_places:
        return load_language_model(weights)
    if from_cpt:
        return start_item_model(load_language_model(weights), words, params.head, seed)
    return load_item_model(weights, words)


def save_model(model: Any, folder: Path) -> None:
    """Write weights, and the head where there is one."""
    (save_item_model if isinstance(model, ItemModel) else save_language_model)(model, folder)
