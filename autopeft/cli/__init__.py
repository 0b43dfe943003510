"""The command line: the same words as in Python.

Each module of this package holds commands that belong together and names them in `COMMANDS`. Nothing
heavy is imported before a command needs it: `--help` answers at once.
"""

import click

from autopeft.cli import cost, dashboard, machine, merging, prediction, replay, results, search, techniques
from autopeft.cli.base import EXIT_CODES, CommandLine


@click.group(
    cls=CommandLine,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="autopeft")
def main() -> None:
    """Search adapters for a pretrained transformer: the Pareto front of efficiency versus quality."""


for _module in (search, results, replay, dashboard, prediction, merging, cost, techniques, machine):
    for _command in _module.COMMANDS:
        main.add_command(_command)
