"""`plumline`: thin verbs. stdout is data, stderr is talk; exit 0 done, 1 failed, 2 refused.

Vendors are imported inside the verbs, so that `plumline --help` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.inspect import inspect
from flows.commands.intake import VERBS
from flows.commands.layouts import layouts
from flows.commands.verb import find_home, json_option, print_answer
from plumline.errors import PlumlineError

if TYPE_CHECKING:
    from datetime import datetime


class _OneLine(click.Group):
    """Plumline's errors are one line on stderr and their own exit code; what else escapes is a bug and shows itself."""

    def invoke(self, ctx: click.Context) -> Any:
        from plumline.settings import switch_telemetry_off

        switch_telemetry_off()
        try:
            return super().invoke(ctx)
        except PlumlineError as error:
            click.echo(f"plumline: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("plumline: stopped; the same command goes on where it was", err=True)
            ctx.exit(130)


_as_of_option = click.option("--as-of", metavar="DATE", help="Last UTC day, included, that the model may know.")


def _say_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from plumline.version import NAME, read_version

        click.echo(f"{NAME} {read_version()}")
        ctx.exit()


@click.group(cls=_OneLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Keep a generative recommender fresh: Semantic IDs, a model that speaks them, constrained retrieval, every day."""


for _verb in (*VERBS, inspect, layouts):
    main.add_command(_verb)


@main.command()
@_as_of_option
@click.option(
    "--anew", is_flag=True, help="Also if a release of this day differs in nothing but the code that made it."
)
@json_option
def bootstrap(as_of: str | None, anew: bool, as_json: bool) -> None:
    """Learn everything anew from the events up to a day, and promote the release if the gate agrees."""
    from flows.clock.run import run_bootstrap

    _report_made(run_bootstrap(find_home(), _day(as_of), anew=anew), as_json)


@main.command()
@_as_of_option
@click.option("--all", "everything", is_flag=True, help="Every day that waits, not only the next one.")
@json_option
def daily(as_of: str | None, everything: bool, as_json: bool) -> None:
    """Make the next day's release; with --as-of every missing day up to it, in order."""
    from flows.clock.run import run_daily

    _report_made(run_daily(find_home(), _day(as_of), None if as_of or everything else 1), as_json)


@main.command("retrain-sids")
@json_option
def retrain_sids(as_json: bool) -> None:
    """Learn new SIDs, and all that follows, from every day but the newest; codes keep the champion's names."""
    from flows.clock.run import run_retrain_sids

    made = run_retrain_sids(find_home())
    _report_made(made, as_json)
    if not made[0].promoted:
        sys.exit(2)  # also where an earlier run was turned down already


@main.command()
@json_option
def day(as_json: bool) -> None:
    """The whole loop in one table (`make day`): bootstrap, two days, serve, monitor; the sample if nothing landed."""
    from flows.commands.day import main_job

    table = main_job(find_home())
    print_answer(table.to_json(), as_json, [table.text()])


@main.command()
@json_option
def status(as_json: bool) -> None:
    """What has landed, which releases there are, which one answers, what waits."""
    from flows.commands.status import read_status

    found = read_status(find_home())
    print_answer(found.to_json(), as_json, found.lines())


@main.command()
@click.option("--user", metavar="ID", help="A user whose history the online store holds.")
@click.option(
    "--history",
    multiple=True,
    metavar="ID,ID…",
    help="Items, oldest first, instead of a user's; repeatable; @FILE has one a line (an id with a comma as it is).",
)
@click.option("-k", "num_items", default=10, show_default=True, type=click.IntRange(1, 100), help="How many items.")
@click.option("--rule", metavar="RULE", help="What every item must fulfil: 'fresh(7d) & ~seen & price < 20'.")
@click.option("--now", metavar="DATE", help="When fresh(…) of the rule counts from, UTC; default: this moment.")
@click.option("--max-per-branch", metavar="N", type=click.IntRange(1, 100), help="At most N SIDs with one first code.")
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(0.001, 100),
    help="A sample, not the best; the higher, the bolder.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the sample.")
@click.option("--exclude-seen", is_flag=True, help="Nothing that is in the history.")
@click.option("--retrieval-only", is_flag=True, help="The model's beams as they are, without memory and ranker.")
@click.option("-v", "--verbose", is_flag=True, help="SIDs, scores and all reasons too.")
@json_option
def recommend(
    user: str | None,
    history: tuple[str, ...],
    num_items: int,
    now: str | None,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask the champion for recommendations, in this process."""
    from flows.commands.recommend import recommend as answer_with

    answer = answer_with(
        find_home(), user=user, history=history or None, num_items=num_items, now=_moment(now), **options
    )
    print_answer(answer.to_json(), as_json, answer.lines(verbose))


@main.command()
@click.argument("prompt")
@click.option("--release", "release_id", metavar="ID", help="A release of the registry; default: the champion.")
@click.option("--max-tokens", default=40, show_default=True, type=click.IntRange(1, 2048), help="Of the completion.")
@click.option(
    "--weights",
    default="cpt",
    show_default=True,
    type=click.Choice(["cpt", "sft"]),
    help="Before or after fine-tuning.",
)
@json_option
def ask(prompt: str, as_json: bool, **options: Any) -> None:
    """Let a release's language model go on with a PROMPT of text and SIDs; {item:ID} stands for an item's SID."""
    from flows.commands.ask import ask as complete

    answer = complete(find_home(), prompt, **options)
    print_answer(answer.to_json(), as_json, answer.lines())


@main.command("beam-check")
@click.option("--release", "release_id", metavar="ID", help="A release of the registry; default: the champion.")
@click.option("--requests", "num_requests", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--width", default=50, show_default=True, type=click.IntRange(min=1), help="Beams of a search.")
@click.option("-k", "num_items", default=10, show_default=True, type=click.IntRange(1, 100), help="Items of a list.")
@click.option("--rule", metavar="RULE", help="What every item must fulfil.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the sample of users.")
@json_option
def beam_check(release_id: str | None, as_json: bool, **options: Any) -> None:
    """Score every SID exactly for some users, and say what the beam search missed; exit 1 if it says what is not so."""
    from flows.commands.beam_check import check_beams

    certificate = check_beams(find_home(), release_id=release_id, **options)
    print_answer(certificate.to_json(), as_json, certificate.lines())
    sys.exit(0 if certificate.holds else 1)


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Default: PLUMLINE_PORT, else 3000; 0 takes a free one.")
def serve(port: int | None) -> None:
    """Serve the champion over HTTP (POST /recommend) until stopped; promotions and rollbacks are picked up live."""
    import subprocess

    from plumline.errors import RefusedError
    from plumline.settings import get_settings
    from serving.deploy import free_port, serve_command, serve_environment
    from serving.pointers import read_pointer

    home = find_home()
    if read_pointer(home / "releases") is None:
        raise RefusedError("no champion to serve; run plumline bootstrap first")
    number = (get_settings().port if port is None else port) or free_port()
    click.echo(f"POST http://127.0.0.1:{number}/recommend (Ctrl-C ends it)", err=True)
    sys.exit(subprocess.run(serve_command(number), cwd=home, env=serve_environment(home), check=False).returncode)


@main.command()
@click.option("--port", default=8001, show_default=True, type=click.IntRange(1, 65535))
def dashboards(port: int) -> None:
    """Show the Evidently dashboards on loopback until stopped."""
    import subprocess

    from monitoring.reports import dashboards_command
    from plumline.settings import child_environment

    click.echo(f"dashboards: http://127.0.0.1:{port} (Ctrl-C ends them)", err=True)
    sys.exit(
        subprocess.run(
            dashboards_command(find_home(), "127.0.0.1", port), env=child_environment(), check=False
        ).returncode
    )


@main.command()
@click.argument("release")
@click.option("--override", default="", metavar="REASON", help="Promote without the gate's yes; the reason is logged.")
@json_option
def promote(release: str, override: str, as_json: bool) -> None:
    """Make a release the champion, if the gate passed it."""
    from flows.steps.promotion import promote as move

    pointer = move(find_home(), release, override=override)
    _push_features(find_home(), pointer.release_id)
    print_answer(_pointer(pointer), as_json, [f"champion: {pointer.release_id} (change {pointer.fencing})"])


@main.command()
@json_option
def rollback(as_json: bool) -> None:
    """Make the release before the champion again; once more goes back further."""
    from flows.steps.promotion import rollback as move

    pointer = move(find_home())
    print_answer(_pointer(pointer), as_json, [f"champion: {pointer.release_id} (change {pointer.fencing})"])


@main.command()
@click.argument("item_ids", nargs=-1, required=True)
@json_option
def retract(item_ids: tuple[str, ...], as_json: bool) -> None:
    """Never serve these items again from this home, whatever release answers; Bentos and tables do not know."""
    from flows.commands.retract import retract as never_serve

    tombstones = never_serve(find_home(), item_ids)
    number = f"{len(tombstones)} item{'s' * (len(tombstones) != 1)}"
    print_answer(tombstones, as_json, [f"never served from this home: {number}"])


@main.group()
def sids() -> None:
    """Look at the Semantic IDs of a release."""


@sids.command("report")
@click.option("--release", "release_id", metavar="ID", help="A release of the registry; default: the champion.")
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the page goes; default: .plumline/reports/sids/<release>.html, with --json none.",
)
@json_option
def sids_report(release_id: str | None, page: Path | None, as_json: bool) -> None:
    """What the SIDs of a release are worth: use, collisions, what a shared prefix means, an atlas with names."""
    from flows.commands.sids import report_sids

    answer = report_sids(find_home(), release_id=release_id, page=page, whole=as_json)
    print_answer(answer.to_json() if as_json else None, as_json, [] if as_json else answer.lines())


@main.command()
def schedule() -> None:
    """Start the clock on this machine until stopped: Prefect server, deployments, automations, a worker."""
    from flows.clock.schedule import run_clock

    sys.exit(run_clock(find_home()))


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check the machine, the installation and every artifact and release; say what to do about what is wrong."""
    from flows.commands.doctor import examine

    findings = examine(find_home())
    print_answer([f.to_json() for f in findings], as_json, [f.line() for f in findings])
    sys.exit(1 if any(not f.passed for f in findings) else 0)


def _push_features(home: Path, release_id: str) -> None:
    """Put the users' features of a promoted release online, as a flow does, while artifacts/ are of its day."""
    from flows.steps.publish_day import push_features
    from flows.steps.registry import Registry

    push_features.fn(str(home), Registry(home).find(release_id).as_of)


def _pointer(pointer: Any) -> dict[str, Any]:
    return {"release_id": pointer.release_id, "fencing": pointer.fencing, "previous": pointer.previous}


def _day(as_of: str | None) -> str | None:
    from datetime import date

    from plumline.errors import InputError

    try:
        return None if as_of is None else date.fromisoformat(as_of).isoformat()
    except ValueError:
        raise InputError(f"--as-of {as_of!r} is no date; write one as 2011-10-31") from None


def _moment(text: str | None) -> "datetime | None":
    from datetime import UTC, datetime

    from plumline.errors import InputError

    try:
        moment = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--now {text!r} is no time; write one as 2011-11-03 or 2011-11-03T12:00") from None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def _report_made(made: list[Any], as_json: bool) -> None:
    rows = [
        {
            "release_id": one.entry.release_id,
            "as_of": one.entry.as_of,
            "kind": one.entry.kind,
            "promoted": one.promoted,
            "reasons": list(one.reasons),
        }
        for one in made
    ]
    words = {True: "champion", False: "not promoted"}
    print_answer(
        rows, as_json, [f"{r['release_id']}  {words[r['promoted']]}  {'; '.join(r['reasons'])}".rstrip() for r in rows]
    )
    if any(one.reasons and not one.promoted and one.fresh for one in made):
        sys.exit(2)
