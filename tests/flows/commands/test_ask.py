"""`plumline ask` on a home with one small sealed release."""

import datetime
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from flows.commands.cli import main
from models.semantic_ids.table import SidTable
from plumline import artifact
from plumline.schema import HISTORIES, ITEMS, conform
from plumline.sid import SidSpace
from plumline.tables import write_parquet
from serving.pointers import add_tombstones, promote
from serving.release import EDGES, ReleaseParams, run

NUM_ITEMS = 6
HISTORY = {"user_id": ["u"], "item_ids": [["i0"]], "timestamps": [[0]], "rewards": [[1.0]]}
CODES = np.array([(n // 2, n % 2, 0) for n in range(NUM_ITEMS)], np.int32)


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """A release whose weights always answer with the SID of item 3 and an end; the fine-tuned ones with an end."""
    from models.language.model import LanguageParams, build_language_model, save_language_model
    from models.language.vocabulary import VocabularyParams
    from models.language.vocabulary import run as run_vocabulary
    from models.language.words import Vocabulary

    root = tmp_path_factory.mktemp("ask")
    items = conform(
        pa.table({"item_id": [f"i{n}" for n in range(NUM_ITEMS)], "title": [f"lamp\x1b[31m {n}" for n in range(6)]}),
        ITEMS,
    )
    items = items.append_column("first_seen_day", pa.nulls(NUM_ITEMS, pa.date32()))
    items = items.append_column("retired", pa.array([False] * NUM_ITEMS))

    def fill(name, out):
        if name == "catalog":
            write_parquet(out / "items.parquet", items)
            write_parquet(out / "users.parquet", pa.table({"user_id": ["u"]}))
        elif name == "embeddings":
            artifact.write_json(out / "encoder" / "title.json", {})
        elif name == "sids":
            SidTable(SidSpace((3, 2, 2)), True, [f"i{n}" for n in range(NUM_ITEMS)], CODES).save(out)
        elif name == "vocabulary":
            told = VocabularyParams(text_tokens=300)
            histories = tmp_path_factory.mktemp("histories")
            write_parquet(histories / "histories.parquet", conform(pa.table(HISTORY), HISTORIES))
            inputs = {name: root / name for name in ("catalog", "sids")}
            run_vocabulary(told, **inputs, histories=histories, base=None, out=out)
        elif name in ("cpt", "sft"):
            words = Vocabulary.load(root / "vocabulary")
            params = LanguageParams(hidden=16, layers=1, heads=2, kv_heads=1, intermediate=16, max_positions=128)
            model = build_language_model(params, words, seed=0)
            chain = [*words.sid_token_ids(CODES[3]).tolist(), words.control["<eos>"]] if name == "cpt" else []
            save_language_model(chained(model, chain, words.control["<eos>"]), out / "weights")
        else:
            artifact.write_json(out / "report.json", {"part": name})

    for name in (
        *("catalog", "embeddings", "quantizer", "sids", "vocabulary", "corpus"),
        "cpt",
        "sft",
        "index",
        "memory",
        "ranker",
        "scores",
    ):
        parents = {parent: artifact.read_manifest(root / parent).digest for parent in EDGES.get(name, ())}
        with artifact.writing(root / name, stage=name, key=name, parents=parents) as out:
            fill(name, out)
    parts = {path.name: path for path in root.iterdir() if path.is_dir() and path.name != ".scratch"}
    with artifact.writing(root / "release", stage="release", key="release") as out:
        run(ReleaseParams(), **parts, as_of=datetime.date(2011, 10, 31), out=out)
    release_id = artifact.read_json(root / "release" / "release.json")["release_id"]
    (root / "releases" / "sealed").mkdir(parents=True)
    (root / "release").rename(root / "releases" / "sealed" / release_id)
    promote(root / "releases", release_id, expected=0)
    return root, release_id


def chained(model, chain, otherwise):
    """A model whose next token follows from the last one alone: chain[i] → chain[i+1], anything else → chain[0]."""
    import torch

    size, hidden = model.get_input_embeddings().weight.shape
    successor = dict(itertools.pairwise(chain))
    targets = sorted({*successor.values(), *chain[:1], otherwise})
    assert len(targets) <= hidden
    with torch.no_grad():
        for layer in model.base_model.layers:  # nothing is added to the embedding: the last token decides
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        rows = torch.zeros(size, hidden)
        for token in range(size):
            rows[token, targets.index(successor.get(token, chain[0] if chain else otherwise))] = 1.0
        head = torch.zeros(size, hidden)
        for place, token in enumerate(targets):
            head[token, place] = 1.0
        model.config.tie_word_embeddings = False
        model.get_input_embeddings().weight.copy_(rows)
        model.lm_head.weight = torch.nn.Parameter(head)
    return model


@pytest.fixture
def made(home, sealed):
    root, release_id = sealed
    shutil.copytree(root / "releases", home / "releases")
    return home, release_id


def ask(home, *arguments):
    return CliRunner(env={"PLUMLINE_HOME": str(home), "PLUMLINE_THREADS": "1"}).invoke(main, ["ask", *arguments])


def test_an_answer_names_its_items(made):
    home, release_id = made
    done = ask(home, "After {item:i1} comes", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["release_id"] == release_id
    assert found["text"] == "<a_1><b_1><c_0>"
    assert found["passages"] == [{"text": "<a_1><b_1><c_0>", "sid": True, "item_id": "i3", "title": "lamp[31m 3"}]
    assert found["ended"]
    assert ask(home, "After <a_0><b_1><c_0> comes").stdout == "<a_1><b_1><c_0> [lamp[31m 3]\n"


def test_weights_release_and_length_are_chosen(made):
    home, release_id = made
    assert json.loads(ask(home, "x", "--weights", "sft", "--json").stdout)["text"] == ""
    short = json.loads(ask(home, "x", "--release", release_id, "--max-tokens", "2", "--json").stdout)
    assert short["text"] == "<a_1><b_1>"
    assert not short["ended"]


def test_deleted_items_are_not_named(made):
    home, _ = made
    add_tombstones(home / "releases", ["i3"])
    assert ask(home, "x").stdout == "<a_1><b_1><c_0>\n"


@pytest.mark.parametrize("prompt", ["Item <a_3>", "Item {item:nobody}", "<b_1>"])
def test_refusals_are_one_line(made, prompt):
    done = ask(made[0], prompt)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_fine_tuned_model_of_places_completes_no_text(made, monkeypatch):
    from flows.commands.ask import Vocabulary

    home, release_id = made
    load = Vocabulary.load

    def with_places(folder):
        words = load(folder)
        return replace(words, shape=replace(words.shape, item_places=True))

    monkeypatch.setattr("flows.commands.ask.Vocabulary.load", with_places)
    assert ask(home, "After {item:i1} comes").stdout.startswith("<a_1><b_1><c_0>")
    refused = ask(home, "x", "--weights", "sft")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1].endswith(
        f"--weights sft: the fine-tuned model of {release_id} reads one position an item and completes no text; "
        "give --weights cpt"
    )
