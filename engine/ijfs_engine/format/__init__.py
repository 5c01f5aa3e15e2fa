"""The bytes on disk, as docs/format.md has them: frames, records, page layouts and chunk codecs. No input or output."""
