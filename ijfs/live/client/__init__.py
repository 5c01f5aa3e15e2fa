"""What the command line and Jupyter call: start, restore, fork, and a connection to a keeper.

`api.py` has the verbs, `instances.py` what there is, `connection.py` one conversation with a keeper, `spawn.py` the way
to a new keeper, `fork.py` several at once.
"""
