"""`ijfs top` on a terminal: what is live and what it takes, the tree of snapshots, and keys for what one does with it.

`samples.py` looks, `screen.py` shows (by textual, the extra `top`), `dialogs.py` asks, `actions.py` does. The verb is
ijfs/cli/verbs/top.py.
"""
