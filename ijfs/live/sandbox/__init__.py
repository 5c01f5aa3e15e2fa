"""The sandbox of one instance: namespaces, mounts, root file system, network.

`sandbox.py` is one sandbox with its program; `init.py` starts it, `rootfs.py` and `volumes.py` make what it sees,
`slirp.py` is its way out, `cleanup.py` sweeps up what a killed keeper left.
"""
