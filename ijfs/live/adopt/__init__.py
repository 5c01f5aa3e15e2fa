"""A branch's files taken home: what it wrote, put where its program would have put it without ijfs.

`branch.py` reads a branch's files, live or saved; `plan.py` compares them with the machine's, three ways; `apply.py`
writes; `noted.py` remembers what was written, so that the next time is no conflict.
"""
