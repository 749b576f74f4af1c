"""Continued pre-training as a stage: the files it leaves, the same bytes after a kill, adoption without torch."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.corpus.corpus import run as run_corpus
from models.corpus.material import CorpusParams
from models.language.model import LanguageParams, load_language_model
from models.language.words import Vocabulary
from models.training.cpt import CptParams, run
from models.training.packing import LoopParams
from plumline.artifact import MANIFEST, list_files, read_json, read_manifest, sha256_file, verify
from plumline.errors import InputError

MODEL = LanguageParams(hidden=16, layers=1, heads=2, kv_heads=1, intermediate=24)
PARAMS = CptParams(steps=4, model=MODEL, loop=LoopParams(row_tokens=256, rows=2, accumulation=1, log_every=2))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    inputs = {name: getattr(world, name) for name in ("catalog", "histories", "sids", "vocabulary")}
    run_corpus(CorpusParams(max_tokens=256), **inputs, as_of=world.as_of, seed=1, out=out)
    return out


@pytest.fixture(autouse=True)
def in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLUMLINE_THREADS", "1")


def digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in list_files(folder)}


def test_files_left(world: Any, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(PARAMS, corpus=corpus, vocabulary=world.vocabulary, quantizer=world.quantizer, base=None, seed=1, out=out)
    names = {
        "loss.json",
        "metrics.json",
        "weights/config.json",
        "weights/generation_config.json",
        "weights/model.safetensors",
    }
    assert digests(out).keys() == names
    metrics = read_json(out / "metrics.json")
    assert metrics["steps"] == 4
    assert {"behaviour", "naming", "title"} <= metrics["heldout"].keys()  # held out by the corpus, asked by the stage
    assert len(metrics["heldout"]["behaviour"]["accuracy"]) == 3
    assert [row["step"] for row in read_json(out / "loss.json")] == [2, 4]
    assert (tmp_path / "artifacts" / "progress" / "cpt.jsonl").is_file()
    words = Vocabulary.load(world.vocabulary)
    assert load_language_model(out / "weights").get_input_embeddings().num_embeddings == words.size


def test_rows_too_short_for_the_corpus_are_refused(world: Any, corpus: Path, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"loop": LoopParams(row_tokens=8)})
    with pytest.raises(InputError, match="row_tokens"):
        out = tmp_path / "out"
        run(params, corpus=corpus, vocabulary=world.vocabulary, quantizer=world.quantizer, base=None, seed=1, out=out)


def start_stage(world: Any, corpus: Path, out: Path, base: str = "", **environment: str) -> subprocess.CompletedProcess:
    recipe = Path("recipe.yaml")
    recipe.write_text(yaml.safe_dump({"cpt": PARAMS.model_dump(mode="json")}))
    told = ["--params", recipe, "--corpus", corpus, "--vocabulary", world.vocabulary, "--quantizer", world.quantizer]
    told += [f"--base={base}", "--seed", "1"]
    command = [sys.executable, "-m", "models.training.cpt", *map(str, told), "--out", str(out)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(world: Any, corpus: Path, tmp_path: Path) -> None:
    assert start_stage(world, corpus, tmp_path / "straight").returncode == 0
    for step in (1, 3):
        killed = start_stage(world, corpus, tmp_path / "killed", PLUMLINE_CRASH_AT=f"cpt:step:{step}")
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
    assert start_stage(world, corpus, tmp_path / "killed").returncode == 0
    assert verify(tmp_path / "killed").digest == read_manifest(tmp_path / "straight").digest
    assert "already done" in start_stage(world, corpus, tmp_path / "killed").stderr


def test_base_is_adopted_without_torch(tmp_path: Path) -> None:
    for name in ("weights/model.safetensors", "metrics.json", MANIFEST):
        path = tmp_path / "base" / "cpt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    code = (
        "import sys; from pathlib import Path; from models.training.cpt import CptParams, run; here = Path('.'); "
        "run(CptParams(), corpus=here, vocabulary=here, quantizer=here, base=Path('base'), seed=1, out=Path('out')); "
        "assert not {'torch', 'transformers', 'accelerate'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert digests(tmp_path / "out").keys() == {"metrics.json", "weights/model.safetensors"}
