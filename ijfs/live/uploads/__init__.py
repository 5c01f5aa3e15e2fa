"""What is saved here goes to a remote as well, by itself and behind the program's back: `--storage REMOTE`.

`followed.py` notes which branches go to which remote and finds what is not there yet, `pusher.py` is the process that
sends it, `reach.py` says what a snapshot needs to go along. A save is done when it is safe on this machine's disk; that
it is at the remote, too, comes later, and is said until then.
"""
