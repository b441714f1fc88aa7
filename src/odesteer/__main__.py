"""`python -m odesteer`."""

from odesteer.cli import main

main()
