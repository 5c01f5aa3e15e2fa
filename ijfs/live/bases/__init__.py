"""Base images: a machine's or image's files stored once, and used below a sandbox in place of this machine's root."""
