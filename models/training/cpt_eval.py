"""What a continued pre-trained model makes of what it has not seen (PLUM 2.2, "various evaluations").

Not a stage: `cpt` takes the exam and writes its marks into metrics.json under `heldout`, one entry a kind of
cpt_heldout.npz, no clock in it:

    behaviour                 next items of held-out users        examples, items, loss, accuracy (one a level), exact
    naming                    title → SID of held-out items       the same
    title, topics, channel    SID → text of held-out items        examples, tokens, loss, accuracy, exact
    general                   text of no item                     examples, tokens, loss, perplexity, perplexity_before

All of it is read from one pass over each example with the right answer in sight (teacher forcing). `loss` is the mean
cross-entropy of a target in nats, over the whole vocabulary. `accuracy`: the share of targets that are the most likely
token given the right ones before them. `exact`: the share of SIDs (of texts with their <eos>) all of whose tokens are:
the very ones that greedy decoding would spell out. perplexity_before is the model's as it was built; the ratio of the
two tells how much of general language was forgotten.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.corpus.examples import KINDS, Examples
from models.language.words import Vocabulary
from models.training.packing import Rows, pack

_SIDS = ("behaviour", "naming")
_TEXTS = ("title", "topics", "channel")
_ROW_TOKENS = 512


@dataclass(frozen=True)
class Answers:
    """The n targets of some examples, and what the model makes of them.

    example: (n,) row of Examples, ascending by place in `chosen`. target, best: (n,) right and most likely token.
    loss: (n,) nats.
    """

    example: np.ndarray
    target: np.ndarray
    best: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Exam:
    """Held-out examples, and how many of each kind are asked. words: the vocabulary they are written in."""

    heldout: Examples
    words: Vocabulary
    most: int

    @classmethod
    def load(cls, corpus: Path, words: Vocabulary, most: int) -> "Exam":
        """Read what the corpus held out. Raises MissingArtifactError, CorruptArtifactError."""
        return cls(Examples.load(corpus / "cpt_heldout.npz"), words, most)

    def chosen(self, kind: str) -> np.ndarray:
        """The first `most` examples of a kind, (n,); they lie in random order."""
        return self.heldout.of_kinds(kind)[: self.most]

    def perplexity(self, model: Any) -> float | None:
        """Of general text; None if there is none."""
        rows = self.chosen("general")
        return _perplexity(answer(model, self.heldout, rows)) if len(rows) else None

    def take(self, model: Any, before: float | None) -> dict[str, Any]:
        """Marks by kind, kinds without examples left out. before: `perplexity` of the model as it was built."""
        chosen = {kind: rows for kind in KINDS if len(rows := self.chosen(kind))}
        if not chosen:
            return {}
        answers = answer(model, self.heldout, np.concatenate(list(chosen.values())))
        kinds = self.heldout.kind[answers.example]
        marks: dict[str, Any] = {}
        for kind, rows in chosen.items():
            mine = kinds == KINDS.index(kind)
            part = Answers(*(column[mine] for column in vars(answers).values()))
            marks[kind] = {"examples": len(rows), "loss": _round(part.loss.mean())}
            if kind in _SIDS:
                marks[kind] |= self._sid_marks(part)
            elif kind in _TEXTS:
                marks[kind] |= _text_marks(part)
            else:
                marks[kind] |= {"tokens": len(part.loss), "perplexity": _perplexity(part)}
        if "general" in marks:
            marks["general"]["perplexity_before"] = before
        return marks

    def _sid_marks(self, answers: Answers) -> dict[str, Any]:
        right_NL = (answers.best == answers.target).reshape(-1, self.words.space.num_levels)
        return {
            "items": len(right_NL),
            "accuracy": [_round(share) for share in right_NL.mean(axis=0)],
            "exact": _round(right_NL.all(axis=1).mean()),
        }


def answer(model: Any, examples: Examples, chosen: np.ndarray) -> Answers:
    """Run the model over examples, packed into rows, and compare at every target.

    model: a causal LM; it is moved to the settings' device. chosen: (n,) rows of the examples.
    """
    import torch
    from torch.nn import functional

    from models.language.model import pick_device, use_threads
    from models.training.target_loss import target_logits

    use_threads()
    device = pick_device()
    model.to(device).eval()
    longest = int(examples.lengths[chosen].max())
    rows = Rows(examples, chosen, max(_ROW_TOKENS, longest), seed=0, pad=0)
    targets = np.add.reduceat(examples.loss, examples.offsets[:-1], dtype=np.int64)
    found: list[tuple[np.ndarray, ...]] = []
    with torch.inference_mode():
        for members in pack(examples.lengths, chosen, rows.row_tokens):
            batch = rows.batch([members])
            tokens, span, places, source, target = (
                torch.from_numpy(part).to(device)
                for part in (batch.tokens, batch.span, batch.positions, batch.source, batch.target)
            )
            logits = target_logits(model, tokens, span, places, source)
            loss = functional.cross_entropy(logits, target, reduction="none")
            owner = np.repeat(members, targets[members])
            found.append((owner, batch.target, logits.argmax(dim=1).cpu().numpy(), loss.double().cpu().numpy()))
    return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _text_marks(answers: Answers) -> dict[str, Any]:
    right = answers.best == answers.target
    begins = np.flatnonzero(np.diff(answers.example, prepend=-1))  # the targets of an example lie together
    return {
        "tokens": len(right),
        "accuracy": _round(right.mean()),
        "exact": _round(np.logical_and.reduceat(right, begins).mean()),
    }


def _perplexity(answers: Answers) -> float:
    return _round(math.exp(min(float(answers.loss.mean()), 700.0)))


def _round(value: float) -> float:
    return round(float(value), 6)
