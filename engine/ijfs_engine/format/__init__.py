"""The bytes on disk, as docs/format.md has them: frames, records, page layouts and chunk codecs. No input or output.

`frames.py` is the unit in which everything is stored, `records.py` what snapshots, trees, files and leaves are,
`chunk_codec.py` how a chunk is compressed, `extents.py` how a leaf finds its bytes, `page_layout.py` the addresses of a
memory image, `place.py` where a frame stands.
"""
