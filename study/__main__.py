"""`python -m study`."""

from study.command import main

main()
