"""`ijfs demo`: the whole of ijfs on a real kernel, in five steps, each of which checks what it shows.

`story` has the steps, `stage` what they stand on (commands, cells, claims), `code` the cells, `leftovers` the proof
that nothing is left behind. The verb (`ijfs.cli.verbs.demo`) runs it all.
"""
