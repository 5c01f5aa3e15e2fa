"""Reading a snapshot: any bytes of any stored file, checked, and whole trees back onto a disk.

From the top: `reader.py` finds and opens files, `stored_file.py` is one file, `chunk_reader.py` brings its chunks
through a cache, `bulk.py` brings many at once past it; `export.py` writes a whole directory.
"""
