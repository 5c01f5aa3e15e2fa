"""`ijfs cp`: files out of programs and snapshots, and into live programs.

`source` has what is copied from (a snapshot's tree, a program's files, this machine's), `target` what is copied to (a
directory, or a pipe). Both go by descriptors: no link in what a program wrote leads a write out of its target.
"""
