"""ijfs.cli: the command line. `main.main` is the console script; one module per verb under `verbs/`."""
