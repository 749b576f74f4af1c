"""Run a stage in several processes, as torchrun does, and end as the stage ended.

    python -m models.training.processes 2 models.training.sft --params recipes/cpu_tiny.yaml …

torchrun itself works too, but it turns every exit code into 1 and its report buries the stage's last line; a flow must
tell a refusal (2) and a kill (worth another try) from a failure. torch is imported inside the function.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence


def launch(num_processes: int, module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module` in that many processes of this machine; returns the exit code of the first that failed.

    Negative: the signal that ended it. The others are ended, too.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"plumline-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    return 0


def main(argv: Sequence[str]) -> None:
    """Exit as the stage did; if a signal ended it, by the same signal."""
    code = launch(int(argv[0]), argv[1], argv[2:])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
