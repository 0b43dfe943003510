"""Commands about the machine and its shell."""

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


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes autopeft's commands, options, keys and paths in SHELL.

    \b
    bash: autopeft completion bash > ~/.autopeft-complete.bash
          echo 'source ~/.autopeft-complete.bash' >> ~/.bashrc
    zsh:  autopeft completion zsh > ~/.autopeft-complete.zsh
          echo 'source ~/.autopeft-complete.zsh' >> ~/.zshrc
    fish: autopeft completion fish > ~/.config/fish/completions/autopeft.fish
    """  # noqa: D301  # click keeps the lines of a paragraph that begins with this character
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    root = click.get_current_context().find_root().command
    click.echo(script(root, {}, "autopeft", "_AUTOPEFT_COMPLETE").source())


COMMANDS = (doctor, completion)
