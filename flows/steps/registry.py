"""The registry of releases: a git + DVC repository of its own (the only caller of DVC).

    releases/registry/        git + DVC; one path (`release/`), one commit and one tag a release
    releases/remote/          DVC's remote, unless PLUMLINE_REGISTRY_REMOTE names another
    releases/sealed/<id>/     releases at hand, immutable; any can be brought back from the registry by its tag

Order of a publish, under a lock: tag there? done · reset · copy · dvc add · dvc push · git commit · git tag. The tag is
the commit point: killed anywhere before it, the next publish starts over and ends in the same state. Tags are GTO's
(`release@v1.20111031.0`: lineage, day, n-th release of that day), their message is the release's entry as JSON.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from plumline import artifact
from plumline.errors import InputError, MissingArtifactError, PlumlineError
from plumline.settings import child_environment, get_settings
from serving.pointers import sealed_folder

_NAME = "release"
_PARTS = "release.json"
"""File of a release that names its parts by their digests."""


@dataclass(frozen=True)
class Entry:
    """One published release.

    key: hash of what determined it (`flows.steps.produce.run_key`); an equal key need not be made again. base: release
    it continues, "" for one learned anew. kind: "bootstrap", "daily" or "retrain". tag: GTO tag of its commit.
    previous: release whose SIDs a retraining followed, "" for none. code: hash of the code that made it, a part of the
    key; "" for a release of before this was kept.
    """

    release_id: str
    digest: str
    as_of: str
    base: str
    kind: str
    key: str
    tag: str = ""
    previous: str = ""
    code: str = ""


class Registry:
    """The registry below `<home>/releases`."""

    def __init__(self, home: Path) -> None:
        self.root = home / "releases"
        self.repository = self.root / "registry"

    def sealed(self, release_id: str) -> Path:
        """Folder of a release at hand. Raises InputError for a name that is none."""
        return sealed_folder(self.root, release_id)

    def seal(self, folder: Path, release_id: str) -> Path:
        """Copy a finished release artifact to `sealed/<id>` (one rename; nothing to do if it is there).

        The same parts made again by other code keep the seal that they have: the registry and verdicts know its digest.
        """
        goal = self.sealed(release_id)
        manifest = artifact.verify(folder)
        if goal.exists():
            there = artifact.verify(goal)
            parts = [one.files.get(_PARTS) for one in (manifest, there)]
            if there.digest == manifest.digest or (parts[0] is not None and parts[0] == parts[1]):
                return goal
        scratch = goal.parent / artifact.SCRATCH / f"{release_id}-{os.getpid()}-copy"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, scratch)
        for path in artifact.list_files(scratch):
            artifact.fsync_path(path)
        artifact.publish(scratch, goal)
        shutil.rmtree(scratch, ignore_errors=True)
        return goal

    def entries(self) -> list[Entry]:
        """All published releases, oldest day first."""
        if not (self.repository / ".git").exists():
            return []
        lines = self._git("for-each-ref", "refs/tags", "--sort=creatordate", "--format=%(refname:short)%09%(contents)")
        entries = []
        for line in lines.splitlines():
            tag, _, message = line.partition("\t")
            if tag.startswith(f"{_NAME}@v") and message:
                entries.append(Entry(**{**json.loads(message), "tag": tag}))
        return sorted(entries, key=lambda entry: (entry.as_of, int(entry.tag.rsplit(".", 1)[1])))

    def find(self, release_id: str) -> Entry:
        """The entry of a release. Raises InputError naming those there are."""
        entries = self.entries()
        for entry in entries:
            if entry.release_id == release_id:
                return entry
        known = ", ".join(entry.release_id for entry in entries) or "none yet; run plumline bootstrap"
        raise InputError(f"release {release_id!r} is not in the registry; there are: {known}")

    def lineage(self, release_id: str) -> list[Entry]:
        """Entries that go back to the same release learned anew as this one, so that known items keep their SIDs."""
        entries = self.entries()
        bases = {entry.release_id: entry.base for entry in entries}

        def root(name: str) -> str:
            return root(bases[name]) if bases.get(name) else name

        return [entry for entry in entries if root(entry.release_id) == root(release_id)]

    def publish(self, entry: Entry) -> Entry:
        """Publish the sealed release of an entry. Idempotent: a release that has its tag is left alone."""
        with self._lock():
            self._init()
            for known in self.entries():
                if known.release_id == entry.release_id:
                    return known
            tagged = Entry(**{**asdict(entry), "tag": self._next_tag(entry)})
            self._git("reset", "-q", "--hard")
            shutil.rmtree(self.repository / _NAME, ignore_errors=True)
            shutil.copytree(self.sealed(entry.release_id), self.repository / _NAME)
            self._dvc("add", "-q", _NAME)
            self._dvc("push", "-q", f"{_NAME}.dvc")
            artifact.write_json(self.repository / "release.json", asdict(tagged))
            shutil.copyfile(self.sealed(entry.release_id) / "scores" / "scores.json", self.repository / "scores.json")
            self._git("add", "-A")
            self._git("commit", "-q", "--allow-empty", "-m", f"{entry.release_id} ({entry.kind})")
            message = artifact.canonical_json({k: v for k, v in asdict(tagged).items() if k != "tag"})
            self._git("tag", "-a", tagged.tag, "-m", message)
            shutil.rmtree(self.repository / _NAME)  # the bytes are in the cache, the remote and sealed/
            return tagged

    def restore(self, release_id: str) -> Path:
        """The sealed folder of a release, brought back from the registry's remote if it is not at hand."""
        folder = self.sealed(release_id)
        if (folder / artifact.MANIFEST).exists():
            artifact.verify(folder)
            return folder
        entry = self.find(release_id)
        with self._lock():
            scratch = folder.parent / artifact.SCRATCH / f"{release_id}-{os.getpid()}-restore"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.parent.mkdir(parents=True, exist_ok=True)
            self._point_at_remote()
            self._git("reset", "-q", "--hard")
            self._git("checkout", "-q", entry.tag, "--", f"{_NAME}.dvc")
            self._dvc("pull", "-q", f"{_NAME}.dvc")
            shutil.move(self.repository / _NAME, scratch)
            self._git("reset", "-q", "--hard")
            if artifact.verify(scratch).digest != entry.digest:
                raise MissingArtifactError(
                    f"release {release_id}: the registry's copy is another one; restore a backup"
                )
            artifact.publish(scratch, folder)
        return folder

    def _next_tag(self, entry: Entry) -> str:
        entries = self.entries()
        lineage = sum(not known.base for known in entries) + (not entry.base)
        day = entry.as_of.replace("-", "")
        same_day = sum(known.tag.startswith(f"{_NAME}@v{lineage}.{day}.") for known in entries)
        return f"{_NAME}@v{lineage}.{day}.{same_day}"

    def _init(self) -> None:
        if (self.repository / ".dvc" / "config").exists() and (self.repository / ".git" / "HEAD").exists():
            self._point_at_remote()
            return
        shutil.rmtree(self.repository, ignore_errors=True)
        self.repository.mkdir(parents=True)
        self._git("init", "-q", "-b", "main")
        self._dvc("init", "-q")
        for option in ("analytics false", "check_update false", "autostage false"):
            self._dvc("config", *f"core.{option}".split())
        self._dvc("config", "cache.type", "reflink,copy")  # a hard link would let an in-place write corrupt the cache
        self._point_at_remote()
        self._git("add", "-A")
        self._git("commit", "-q", "-m", "An empty registry")

    def _point_at_remote(self) -> None:
        remote = get_settings().registry_remote or str((self.root / "remote").resolve())
        if "://" not in remote:
            Path(remote).mkdir(parents=True, exist_ok=True)
        self._dvc("remote", "add", "-q", "-f", "--local", "-d", "store", remote)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _git(self, *arguments: str) -> str:
        # an identity of its own: the machine's person need not have one, and is not the author
        identity = ("-c", "user.name=Plumline registry", "-c", "user.email=registry@plumline.invalid")
        return _run(
            ["git", *identity, "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false", *arguments], self.repository
        )

    def _dvc(self, *arguments: str) -> None:
        _run([sys.executable, "-m", "dvc", *arguments], self.repository)


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise PlumlineError(f"{' '.join(command[:4])} … in {folder}: {words[-1] if words else done.returncode}")
    return done.stdout
