"""The benchmarks are scripts beside the packages, found from the repository's root as they find themselves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
