"""`python -m autopeft` is `autopeft`."""

from autopeft.cli import main

main(prog_name="autopeft")
