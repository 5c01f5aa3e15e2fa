"""The sandbox of one instance: namespaces, mounts, root file system, network."""
