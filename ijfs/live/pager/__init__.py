"""The userfaultfd pager: brings a restored program's memory in while the program already runs.

`api.py` is what the keeper calls; `python -m ijfs.live.pager` is the pager process itself: `supervisor.py` around
`server.py`, which hears CRIU (`conversation.py`) and the program (`spaces.py`, `faults.py`). `scheduler.py` says what
to read next, `fetch.py` has the threads, `image_files.py` the bytes. docs/architecture.md, "The pager", has a picture.
Nothing is imported here: the process has to serve within milliseconds.
"""
