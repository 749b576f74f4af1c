"""Artifacts: immutable folders that are either finished or not there.

    <parent>/.scratch/<name>-<pid>-<random>/   being written
    <parent>/<name>/manifest.json              finished

Writing: files into a scratch folder → fsync of each → manifest (sha256, sizes, parents, params, git sha) last → one
rename. Reading: `verify` compares every byte with the manifest before anything is used, because neither safetensors nor
parquet would notice a flipped bit. A manifest holds no clock and no host, so equal inputs give equal bytes.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plumline.crash import crash_point
from plumline.errors import CorruptArtifactError, MissingArtifactError

MANIFEST = "manifest.json"
SCRATCH = ".scratch"


@dataclass(frozen=True)
class Manifest:
    """What a finished folder is and where it came from.

    stage: noun of the stage that wrote it.
    key: hash of everything that determined it (params, inputs, arguments, code); equal key, nothing to redo.
    files: relative path → {"sha256", "size" in bytes}.
    parents: input name → digest of the artifact or fingerprint of the files that were read.
    params, arguments: what the stage was told.
    code: hash of the source files that the stage can reach. git_sha: commit of that code, "unknown" outside git.
    """

    stage: str
    key: str
    files: dict[str, dict[str, Any]]
    parents: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    git_sha: str = ""

    @property
    def digest(self) -> str:
        """Identity of the content: hash over stage and files, whoever made them and wherever they lie."""
        return sha256_json({"stage": self.stage, "files": self.files})


def canonical_json(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON (sorted keys, two spaces, no NaN). Not atomic: inside a scratch folder only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises CorruptArtifactError naming the file if it is not JSON, MissingArtifactError if absent."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingArtifactError(f"{path}: no such file; run the stage that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifactError(f"{path}: not JSON ({error}); delete it and run the stage again") from None


def replace_file(path: Path, text: str) -> None:
    """Put a small text file in place at once: readers see the old one or the new one (pointers, verdicts)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        scratch.write_text(text, encoding="utf-8")
        fsync_path(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    fsync_path(path.parent)


def list_files(folder: Path) -> list[Path]:
    """Every regular file below a folder but the top manifest, sorted; a symbolic link is a CorruptArtifactError."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise CorruptArtifactError(f"{path}: symbolic link inside an artifact; artifacts hold plain files only")
        if path.is_file() and path != folder / MANIFEST:
            files.append(path)
    return files


def seal(folder: Path, **about: Any) -> Manifest:
    """Hash and fsync every file of `folder`, then write its manifest last. `about`: the other fields of Manifest."""
    files = {}
    for path in list_files(folder):
        fsync_path(path)
        files[path.relative_to(folder).as_posix()] = {"sha256": sha256_file(path), "size": path.stat().st_size}
    manifest = Manifest(files=files, **about)
    crash_point(manifest.stage, "written")
    write_json(folder / MANIFEST, asdict(manifest))
    fsync_path(folder / MANIFEST)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        fsync_path(path)
    crash_point(manifest.stage, "sealed")
    return manifest


def publish(scratch: Path, out: Path) -> None:
    """Move a sealed scratch folder to `out` in one step; what lay there before goes.

    Both folders change names in one system call (renameat2 with RENAME_EXCHANGE) where the file system can, so that a
    reader finds the old artifact or the new one and never none.
    """
    if out.exists():
        if not _exchange(scratch, out):
            aside = scratch.with_name(scratch.name + ".old")
            out.rename(aside)
            scratch.rename(out)
            shutil.rmtree(aside)
    else:
        scratch.rename(out)
    fsync_path(out.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths atomically. False where the kernel or the file system cannot."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)


@contextlib.contextmanager
def writing(out: Path, **about: Any) -> Iterator[Path]:
    """Yield a scratch folder; on success seal it and publish it at `out`, on any exception leave `out` untouched.

    about: fields of Manifest besides `files` (stage and key at least).
    """
    scratch_root = out.parent / SCRATCH
    scratch_root.mkdir(parents=True, exist_ok=True)
    _sweep(scratch_root)
    scratch = scratch_root / f"{out.name}-{os.getpid()}-{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        yield scratch
        crash_point(about["stage"], "body")
        seal(scratch, **about)
        publish(scratch, out)
        crash_point(about["stage"], "published")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sweep(scratch_root: Path) -> None:
    """Remove scratch folders whose process is gone (killed writers)."""
    for leftover in scratch_root.iterdir():
        pid = leftover.name.rsplit("-", 2)[-2] if leftover.name.count("-") >= 2 else ""
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(leftover, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished artifact. Raises MissingArtifactError or CorruptArtifactError; hashes nothing."""
    if not (folder / MANIFEST).is_file():
        raise MissingArtifactError(f"{folder}: no finished artifact there; run the stage that writes it")
    raw = read_json(folder / MANIFEST)
    try:
        manifest = Manifest(**raw)
        if not all(set(entry) == {"sha256", "size"} for entry in manifest.files.values()):
            raise TypeError("a file without sha256 and size")
    except (TypeError, AttributeError) as error:
        raise CorruptArtifactError(f"{folder / MANIFEST}: not a manifest of this version ({error})") from None
    return manifest


def verify(folder: Path) -> Manifest:
    """Compare every byte of an artifact with its manifest and return the manifest.

    Raises MissingArtifactError if there is none, CorruptArtifactError naming the first file that is missing, too many,
    of another size (truncated) or of another content (flipped bits, zeros).
    """
    manifest = read_manifest(folder)
    present = {path.relative_to(folder).as_posix() for path in list_files(folder)}
    hint = "delete the folder and run its stage again, or restore it from the registry"
    for name in sorted(manifest.files.keys() - present):
        raise CorruptArtifactError(f"{folder / name}: named in the manifest but missing; {hint}")
    for name in sorted(present - manifest.files.keys()):
        raise CorruptArtifactError(f"{folder / name}: not named in the manifest; {hint}")
    for name, entry in manifest.files.items():
        path = folder / name
        if path.stat().st_size != entry["size"]:
            raise CorruptArtifactError(
                f"{path}: {path.stat().st_size} bytes where the manifest says {entry['size']}; {hint}"
            )
        if sha256_file(path) != entry["sha256"]:
            raise CorruptArtifactError(f"{path}: content differs from the manifest's sha256; {hint}")
    return manifest


def fingerprint(path: Path) -> str:
    """Identity of any input: an artifact's digest, a file's sha256, a folder's children, or "absent".

    A folder without a manifest is the sorted list of its children's fingerprints (hidden names left out); finished
    artifacts in it count by their digest and are not read again.
    """
    if not path.exists():
        return "absent"
    if path.is_file():
        return sha256_file(path)
    if (path / MANIFEST).is_file():
        return read_manifest(path).digest
    return sha256_json({p.name: fingerprint(p) for p in sorted(path.iterdir()) if not p.name.startswith(".")})


def copy_payload(source: Path, target: Path, names: Mapping[str, str] | None = None) -> None:
    """Copy the files of an artifact (all but the top manifest) below `target`; `names` keeps some, old → new name."""
    for path in list_files(source):
        name = path.relative_to(source).as_posix()
        if names is not None and name not in names:
            continue
        goal = target / (names[name] if names is not None else name)
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, goal)
