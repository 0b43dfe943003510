"""`autopeft techniques`: what can be combined with what."""

import click

from autopeft.cli.base import explain_errors


@click.command()
@click.option("--markdown", is_flag=True, help="Write the tables of search_spaces/README.md.")
@explain_errors
def techniques(markdown: bool) -> None:
    """List the techniques that designs are made of, with their fields and what they go with."""
    from autopeft.spec.techniques import combinations_markdown, techniques_markdown

    if markdown:
        click.echo(f"{techniques_markdown()}\n\n{combinations_markdown()}")
        return
    _print()


def _print() -> None:
    from autopeft.spec.learning_rates import default_learning_rate
    from autopeft.spec.techniques import describe, fields, technique_rows

    kind = ""
    for row in technique_rows():
        if row.kind != kind:
            kind = row.kind
            click.echo(f"\n{kind}: {describe(kind)}")
            listed = ", ".join(f"{name} ({value})" if value else name for name, value in fields(kind).items())
            click.echo(f"  fields         {listed or 'none'}; learning rate {default_learning_rate(kind):.2g}")
        label = row.variant or "goes with"
        refused = [name for name, allowed in row.quantizations.items() if not allowed] + list(row.not_with)
        click.echo(f"  {label:<14} {'everything' if not refused else 'everything but ' + ', '.join(refused)}")
        for reason in row.by_reason():
            click.echo(f"  {'':<14} {reason}")


COMMANDS = (techniques,)
