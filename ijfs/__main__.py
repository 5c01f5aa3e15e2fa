"""`python -m ijfs`: the command line, of the Python that is named."""

from ijfs.cli.entry import main

if __name__ == "__main__":
    main()
