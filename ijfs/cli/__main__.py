"""`python -m ijfs.cli`: the console script where none is installed, and for tests."""

from ijfs.cli.main import main

main()
