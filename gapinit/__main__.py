"""`python -m gapinit`: the command line."""

from gapinit.cli import main

main()
