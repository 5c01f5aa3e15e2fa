"""Files and locks: packs, the index, the journal, refs, pins and sessions.

`open_repository.py` holds the parts of an open repository. `session.py` adds to it, through `pack.py`, `index.py` and
`journal.py`; `object_store.py` reads from it; `refs.py`, `listed.py`, `ordering.py`, `names.py` and `pins.py` are
about names and what they keep. Every write goes through `disk.py`; `locks.py` says who lives. docs/concurrency.md has
the rules.
"""
