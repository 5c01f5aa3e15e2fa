"""The data that processes pass to one another or keep in files: records, paths, the keeper's protocol."""
