"""Making a snapshot: files and memory images into chunks, against what the parent has."""
