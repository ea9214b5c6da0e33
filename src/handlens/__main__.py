"""`python -m handlens` is the command `handlens`."""

from handlens.cli import main

main()
