"""What looks after a repository: gc, repack, prune, disk usage, fsck and repair.

Each verb of `Repository` has a module of its name. `reachability.py` is the walk that gc, du and fsck share;
`pack_check.py` and `damage_report.py` belong to fsck; `rebuild_index.py` and `journal_history.py` to the repair.
"""
