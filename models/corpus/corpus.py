"""Histories and catalogue → token sequences: text for continued pre-training, prompts with targets for fine-tuning.

reads   catalog, histories, sids, vocabulary
writes  cpt.npz, cpt_heldout.npz, sft.npz (each `Examples`: tokens, span, loss, offsets, kind, weight),
        report.json (what is in each of them by kind; events known and unknown)
run     python -m models.corpus.corpus --params recipes/cpu_tiny.yaml --catalog … --histories … --sids … \
            --vocabulary … --as-of 2011-10-31 --seed 17 --out artifacts/corpus

CPT (PLUM 2.2, Table 1): half of the examples are behaviour (a window of a user's history), half metadata (SID + title,
SID + topics, text → SID …), and general text on request; every token counts in the loss. cpt_heldout.npz is what the
stage cpt is examined on and has not seen: histories of held-out users (kind `behaviour`; targets are the SIDs behind
the first), title → SID (`naming`; targets are the SID), SID → title, topics, channel of held-out items (`title`,
`topics`, `channel`; targets are the text and its <eos>), held-out lines (`general`). Within a kind in random order.

SFT (PLUM 2.3, eq. 3): a window of a user's history is one example in which no token is computed twice. It is a tree:
the trunk is the history; where a new day begins a branch leaves it that holds the rest of the prompt and then, each as
a branch of its own, the items of that day. The path from the root to a target is token by token what `render_prompt`
gives for a request at that moment. With `vocabulary.item_places` it is a row of places instead, and sft.npz holds
`ItemExamples` (models/corpus/sft_item_examples.py).
"""

from datetime import date
from pathlib import Path

import numpy as np

from models.corpus.cpt_examples import cpt_examples
from models.corpus.material import EPOCH, MS_PER_DAY, CorpusParams, Material
from models.corpus.sft_examples import sft_examples
from models.corpus.sft_item_examples import sft_item_examples
from plumline.artifact import write_json
from plumline.errors import InputError
from plumline.stage import hash_seed, main, say


def run(
    params: CorpusParams,
    *,
    catalog: Path,
    histories: Path,
    sids: Path,
    vocabulary: Path,
    as_of: date,
    seed: int,
    out: Path,
) -> None:
    """Write both sets of examples. See the module's docstring."""
    material = Material.load(catalog=catalog, histories=histories, sids=sids, vocabulary=vocabulary)
    events, last_day = material.events, (as_of - EPOCH).days
    if len(events.timestamps) and events.timestamps.max() >= (last_day + 1) * MS_PER_DAY:
        raise InputError(f"histories know events after {as_of}; run the stage histories with --as-of {as_of} again")
    cpt = cpt_examples(params, material, np.random.default_rng(hash_seed(seed, "cpt")))
    write_sft = sft_item_examples if material.words.shape.item_places else sft_examples
    sft = write_sft(params, material, last_day, np.random.default_rng(hash_seed(seed, "sft")))
    written = {"cpt": cpt.train, "cpt_heldout": cpt.heldout, "sft": sft}
    report = {name: examples.describe() for name, examples in written.items()}
    write_json(out / "report.json", {**report, "events": len(events.rows), "unknown_events": events.num_unknown})
    for name, examples in written.items():
        examples.save(out / f"{name}.npz")
        say(f"corpus: {name} has {examples.num_examples} examples, {len(examples.tokens)} tokens")


if __name__ == "__main__":
    main(run, section="corpus")
