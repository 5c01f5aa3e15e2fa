"""What the command line and Jupyter call: start, restore, fork, and a connection to a keeper."""
