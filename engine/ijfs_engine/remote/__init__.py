"""Many machines, one tree: what a repository and an object store have to do with each other.

From below: `bucket.py` is the store, `view.py` and `operation.py` say what a tree is and how it changes, `oplog.py`
reads and adds operations; `far_index.py` knows where the store's chunks are, `cache.py` keeps what was read of them,
`elsewhere.py` gives both to the local store's readers. `push.py`, `fetch.py` and `pull.py` are the verbs,
`remotes.py` the door.
"""
