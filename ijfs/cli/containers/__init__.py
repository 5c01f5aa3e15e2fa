"""Checkpoints of containers, as podman, CRI-O and runc make and read them: `ijfs import` and `ijfs export --for`.

In a snapshot CRIU's images are at `images/`, where their memory is understood, and what else the engine put beside them
is at `container/`.
"""
