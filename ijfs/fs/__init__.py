"""Snapshots as files, through FUSE: what `ijfs mount` shows, and the images that an eager restore reads.

`nodes` and `operations` serve any tree; `vfs` and `stored` make one of a repository. Processes know `mountpoint`.
"""
