"""The one tree of exceptions that Plumline raises on purpose.

    PlumlineError                exit 1: the work was tried and failed
    ├── InputError               exit 2: what came from outside cannot be used (file, column, value, flag)
    ├── RefusedError             exit 2: a rule said no (a gate, a lock, a bad day)
    └── ArtifactError            exit 1: bytes of ours cannot be trusted
        ├── MissingArtifactError     nothing finished lies there
        ├── CorruptArtifactError     a file is not the one its manifest names
        └── MixedReleaseError        parts of two releases lie in one

Every message holds the value, what is allowed, and what to do next; the command line prints it as one line.
Anything else that escapes is a bug of ours and keeps its traceback.
"""


class PlumlineError(Exception):
    """Base of the tree: catch this to catch everything Plumline raises on purpose."""

    exit_code = 1


class InputError(PlumlineError):
    """What came from outside cannot be used."""

    exit_code = 2


class RefusedError(PlumlineError):
    """A rule said no, and nothing was changed."""

    exit_code = 2


class ArtifactError(PlumlineError):
    """Bytes of ours cannot be trusted."""


class MissingArtifactError(ArtifactError):
    """Nothing finished lies at the path."""


class CorruptArtifactError(ArtifactError):
    """A file is not the one its manifest names."""


class MixedReleaseError(ArtifactError):
    """Parts of two releases lie in one folder."""
