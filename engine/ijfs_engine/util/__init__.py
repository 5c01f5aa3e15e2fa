"""Small helpers that know nothing of a repository: caches, buffers, threads, progress, how long reads waited."""
