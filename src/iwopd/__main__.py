"""`python -m iwopd`."""

from iwopd.cli import main
from iwopd.runs.interrupts import follow_parent

follow_parent()
main()
