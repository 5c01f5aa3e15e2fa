"""CRIU: its command line, its image files, its logs and its hooks."""
