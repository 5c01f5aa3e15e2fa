"""What E2B's clients find at port 49983 of a sandbox: commands, terminals, files. One `Envd` a sandbox (daemon.py).

The messages are those that the clients send and read; every line of what answers them is ours. Commands are entered
from outside, and files reached from outside: nothing of this runs in the sandbox.
"""
