"""The schedule on a real server: with a wrong fastapi or sqlalchemy it starts, looks healthy and never fires."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.timeout(300)
def test_a_deployed_cron_gets_scheduled_runs(home):
    from flows.clock.schedule import AUTOMATIONS, deploy
    from flows.clock.server import prefect_server

    with prefect_server(home):
        deploy(home)
        deploy(home)  # again is an update, nothing is doubled
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName

        with get_client(sync_client=True) as client:
            assert {d.name for d in client.read_deployments()} == {"daily", "retrain-sids"}
            names = [automation.name for automation in client.read_automations()]
            assert sorted(names) == sorted(automation["name"] for automation in AUTOMATIONS)
            scheduled = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled"])))
            deadline = time.monotonic() + 120
            runs = []
            while time.monotonic() < deadline and len({run.deployment_id for run in runs}) < 2:
                runs = client.read_flow_runs(flow_run_filter=scheduled)
                time.sleep(1)
    assert len({run.deployment_id for run in runs}) == 2, "a deployment has no scheduled run"


def test_a_run_counts_as_crashed_after_three_beats_that_did_not_come(tmp_path):
    from flows.clock.schedule import AUTOMATIONS
    from flows.clock.server import prefect_environment

    beat = int(prefect_environment(tmp_path)["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    crashed, again = (automation["trigger"] for automation in AUTOMATIONS)
    assert (crashed["within"], beat) == (90, 30)
    assert (crashed["threshold"], again["threshold"], again["within"]) == (1, 1, 0)


class Deaf(subprocess.Popen):
    """A worker that does not hear SIGTERM, and for whom somebody presses Ctrl-C as soon as it is waited for."""

    told = False

    def __init__(self, *args, **kwargs):
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
        super().__init__([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
        assert self.stdout.readline() == "deaf\n"

    def wait(self, timeout=None):
        if not self.told:
            self.told = True
            raise KeyboardInterrupt
        return super().wait(timeout)


def test_ctrl_c_ends_a_worker_that_does_not_hear(home, monkeypatch):
    from flows.clock import schedule

    assert schedule.STOP_SECONDS == 20
    workers = []

    def start(*args, **kwargs):
        workers.append(Deaf())
        return workers[-1]

    monkeypatch.setattr(schedule, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(schedule, "prefect_server", lambda home: contextlib.nullcontext("http://127.0.0.1:1/api"))
    monkeypatch.setattr(schedule, "deploy", lambda home: None)
    monkeypatch.setattr(schedule.subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        schedule.run_clock(home)
    workers[0].stdout.close()
    assert workers[0].poll() == -signal.SIGKILL
