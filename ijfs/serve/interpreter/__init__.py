"""What E2B's code interpreter client finds at port 49999 of a sandbox: cells, their results, contexts."""
