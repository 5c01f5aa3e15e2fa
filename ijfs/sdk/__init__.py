"""The Python SDK: live programs and their snapshots as objects. docs/sdk.md shows it; `import ijfs` hands it out.

`repository.py` is the way in, `box.py` a live program, `snapshots.py` a saved moment, `commands.py` and `files.py` what
is done inside, `forks.py` live copies, `search.py` a search over them, `filesystem.py` snapshots for fsspec, `calls.py`
how a call ends early, `aio.py` the same for asyncio and trio. `names.py` says where each public name
is; each is loaded when it is first used.
"""
