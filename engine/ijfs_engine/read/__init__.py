"""Reading a snapshot: any bytes of any stored file, checked, and whole trees back onto a disk."""
