"""The schedule on a real server: with a wrong fastapi or sqlalchemy it starts, looks healthy and never fires."""

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
