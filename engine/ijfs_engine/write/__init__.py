"""Making a snapshot: files and memory images into chunks, against what the parent has.

`snapshot_writer.py` is what callers see. It gives files to `file_writer.py`; memory images go on to `page_writer.py`,
which compares them with the parent (`parent_pages.py`, `fingerprints.py`, `page_deltas.py`). What is new is cut and
stored by `regions.py`. docs/internals/life-of-a-page.md follows one page through all of it.
"""
