"""What looks after a repository: gc, repack, prune, disk usage, fsck and repair."""
