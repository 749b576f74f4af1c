"""`plumline status`: what has landed, which releases there are, which one answers, what waits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.steps.calendar import days_to_process, landed_days
from flows.steps.graph import read_params
from flows.steps.registry import Registry
from plumline.errors import PlumlineError
from serving.pointers import read_pointer


@dataclass(frozen=True)
class Status:
    """What is true now. Days are ISO dates.

    other_code: stages whose part of the champion was made by other code than what is installed. waiting: landed days
    that want a release.
    """

    recipe: str
    as_of: str
    landed: tuple[str, ...]
    releases: tuple[dict[str, Any], ...]
    champion: str
    previous: str
    other_code: tuple[str, ...]
    waiting: tuple[str, ...]
    alerts: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, days as first, last and number."""
        landed = {"first": self.landed[0], "last": self.landed[-1], "days": len(self.landed)} if self.landed else None
        return {**self.__dict__, "landed": landed}

    def lines(self) -> list[str]:
        """For people."""
        landed = f"{self.landed[0]} to {self.landed[-1]} ({len(self.landed)} days)" if self.landed else "nothing yet"
        lines = [f"recipe    {self.recipe}, as_of {self.as_of}", f"landed    {landed}"]
        lines.append(f"champion  {self.champion or 'none; run plumline bootstrap'}")
        lines += [f"previous  {self.previous}"] if self.previous else []
        if self.other_code:
            lines.append(
                f"code      not what made the champion's {', '.join(self.other_code)}; days go on from it all the same"
            )
        waiting = f"{len(self.waiting)} days, the next is {self.waiting[0]}" if self.waiting else "nothing"
        lines.append(f"waiting   {waiting}")
        for release in self.releases:
            mark = "*" if release["release_id"] == self.champion else " "
            lines.append(
                f"{mark} {release['release_id']}  {release['kind']:<9}  {release['verdict']:<8}  {release['tag']}"
            )
        lines += [f"! {alert['severity']}: {alert['summary']} ({alert['day']})" for alert in self.alerts[-5:]]
        return lines


def read_status(home: Path) -> Status:
    """Look at a home. Never raises for something that is not there yet."""
    from dataclasses import asdict

    from flows.steps.code import stages_of_other_code
    from flows.steps.verdicts import read_verdict
    from monitoring.alerts import read_alerts

    params = read_params(home)
    pointer = read_pointer(home / "releases")
    releases = []
    for entry in Registry(home).entries():
        verdict = read_verdict(home, entry.release_id)
        releases.append({**asdict(entry), "verdict": verdict.status if verdict else "unjudged"})
    try:
        waiting = days_to_process(home, None)
    except PlumlineError:
        waiting = []
    alerts = [{k: v if k != "day" else str(v) for k, v in asdict(alert).items()} for alert in read_alerts(home)]
    return Status(
        recipe=params["recipe"],
        as_of=params["as_of"],
        landed=tuple(map(str, landed_days(home))),
        releases=tuple(releases),
        champion=pointer.release_id if pointer else "",
        other_code=tuple(stages_of_other_code(home, pointer.release_id)) if pointer else (),
        previous=(pointer.previous or "") if pointer else "",
        waiting=tuple(map(str, waiting)),
        alerts=tuple(alerts),
    )
