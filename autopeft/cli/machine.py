"""Commands about the machine."""

import sys

import click

from autopeft.cli.base import BAD_REQUEST, explain_errors


@click.command()
@explain_errors
def doctor() -> None:
    """Check this machine: versions, device, and whether quantized training works on it."""
    from autopeft.doctor import examine

    healthy = True
    for finding in examine():
        healthy = healthy and finding.ok
        click.secho("ok      " if finding.ok else "problem ", fg="green" if finding.ok else "red", nl=False)
        click.echo(f"{finding.name}: {finding.detail}")
    if not healthy:
        sys.exit(BAD_REQUEST)


COMMANDS = (doctor,)
