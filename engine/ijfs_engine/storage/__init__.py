"""Files and locks: packs, the index, the journal, refs, pins and sessions."""
