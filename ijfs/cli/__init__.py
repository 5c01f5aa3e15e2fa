"""ijfs.cli: the command line. `entry.main`, the console script, calls `main.main`; one verb a module in `verbs/`."""
