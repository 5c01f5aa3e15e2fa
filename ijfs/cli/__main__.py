"""`python -m ijfs.cli`: the console script where none is installed, and for tests."""

from ijfs.cli.entry import main

main()
