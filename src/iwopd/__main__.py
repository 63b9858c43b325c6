"""`python -m iwopd`."""

from iwopd.cli import main
from iwopd.interrupts import follow_parent

follow_parent()
main()
