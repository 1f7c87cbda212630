"""The commands that talk to the Hub: push, pull, verify, publish, card."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import convstem
from convstem.cli import AS_JSON, FOLDER, LABELS, OVERWRITE, print_json, say, say_lines

PRIVATE = click.option("--private", is_flag=True, help="Create a private repository.")


@click.command(short_help="Push a model to the Hub as one commit.")
@click.argument("source")
@click.argument("repo_id")
@click.option("--license", required=True, help="Licence of the weights, for example apache-2.0.")
@click.option("--tag", help="Take the card's facts from this registry entry.")
@click.option("--revision", help="Branch to push to, created if needed.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--card", type=click.Path(exists=True, dir_okay=False), help="Model card, a markdown file.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="For example acc@1=81.2; repeatable.")
@click.option("--dataset", default="", help="Dataset of the metrics.")
@LABELS
@click.option("--base-model", help="Repository that the weights derive from.")
@click.option("--architecture", help="Architecture, if the one that a checkpoint names can no longer be found.")
@click.option("--use-ema", is_flag=True, help="Push the averaged weights of a checkpoint.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@PRIVATE
@AS_JSON
def push(
    source: str,
    repo_id: str,
    license: str,
    tag: str | None,
    revision: str | None,
    create_pr: bool,
    card: str | None,
    metrics: tuple[str, ...],
    dataset: str,
    labels: list[str] | None,
    base_model: str | None,
    architecture: str | None,
    use_ema: bool,
    dry_run: bool,
    private: bool,
    as_json: bool,
) -> None:
    """Push SOURCE to the Hub repository REPO_ID as one commit.

    SOURCE is a folder with config.json and model.safetensors, or a checkpoint of timm's train.py.
    """
    result = convstem.push(
        source,
        repo_id,
        license=license,
        tag=tag,
        private=private,
        revision=revision,
        create_pr=create_pr,
        card=Path(card) if card else None,
        metrics=dict(parse_metric(metric) for metric in metrics),
        dataset=dataset,
        labels=labels,
        use_ema=use_ema,
        architecture=architecture,
        base_model=base_model,
        dry_run=dry_run,
    )
    if as_json:
        print_json(result.to_json())
        return
    for name, action in result.files.items():
        say(f"{action:<7} {name}")
    if result.note:
        say(result.note)
    if not result.changed:
        say(f"nothing to send: {result.pr_url or result.url} has the same content")
    elif result.commit is None:
        say(f"dry run: nothing was sent to {repo_id}")
    else:
        say(f"pushed and verified: {result.pr_url or result.url}")


def parse_metric(text: str) -> tuple[str, float]:
    """Return the name and the value in ``name=value``."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"a metric is NAME=VALUE, for example acc@1=81.2; got {text!r}") from None


@click.command(short_help="Download a model at one commit, verified.")
@click.argument("source")
@click.option("--revision", help="Branch, tag or commit.")
@click.option("--out", type=FOLDER, help="Copy the files into this folder.")
@OVERWRITE
def pull(source: str, revision: str | None, out: Path | None, overwrite: bool) -> None:
    """Download the weights, config and card of SOURCE (ORG/NAME or a pretrained name) at one commit, verified."""
    say(convstem.pull(source, revision, out, overwrite=overwrite))


@click.command(short_help="Check a repository or folder.")
@click.argument("source")
@click.option("--revision", help="Branch, tag or commit.")
@AS_JSON
def verify(source: str, revision: str | None, as_json: bool) -> None:
    """Check SOURCE: hashes, header, shapes, finite values, config, licence.

    SOURCE is ORG/NAME, a folder or a pretrained name.
    """
    report = convstem.verify(source, revision)
    if as_json:
        print_json(report.to_json())
    else:
        for check in report.checks:
            say(f"{'ok' if check.ok else 'FAILED':<7} {check.name:<8} {check.detail}")
        sha256 = f", sha256 {report.sha256}" if report.sha256 else ""
        say(f"{report.source}: {'verified' if report.ok else 'not verified'}{sha256}")
    sys.exit(0 if report.ok else 1)


@click.command(short_help="Publish the registry's weights to an organisation.")
@click.option("--namespace", required=True, help="Organisation or user on the Hub.")
@click.option("--only", default="*", show_default=True, help="Pattern for architecture.tag.")
@click.option("--dry-run", is_flag=True, help="Only print the plan.")
@PRIVATE
@AS_JSON
def publish(namespace: str, only: str, dry_run: bool, private: bool, as_json: bool) -> None:
    """Publish the registry's own and transplanted weights, skipping repositories that already have them."""
    from convstem.publishing.publish import Publication

    def report(row: Publication) -> None:
        if not as_json:
            say(f"{row.action:<9} {row.repo_id}  {row.detail}")

    rows = convstem.publish(namespace, only, dry_run=dry_run, private=private, report=report)
    if as_json:
        print_json([row.to_json() for row in rows])
    sys.exit(1 if any(row.action == "failed" for row in rows) else 0)


@click.command(short_help="Print a model card.")
@click.argument("source")
@click.option("--license", help="Licence, if a folder or repository states none.")
def card(source: str, license: str | None) -> None:
    """Print the model card of SOURCE: a pretrained name, a folder or ORG/NAME."""
    from convstem.publishing.card import card_of

    say_lines(card_of(source, license), nl=False)
