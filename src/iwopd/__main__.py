"""`python -m iwopd`."""

from iwopd.cli import main

main()
