"""The userfaultfd pager: brings a restored program's memory in while the program already runs.

`api` is what the keeper calls; `python -m ijfs.live.pager` is the pager process itself (`server`).
docs/architecture.md, "The pager", has the picture. Nothing is imported here: the process has to serve within
milliseconds.
"""
