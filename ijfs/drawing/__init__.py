"""How a repository looks, on a terminal and in a notebook: one drawing for both.

Standard library only, Python 3.9 and newer, and nothing else of ijfs: it also runs inside programs, where `%ijfs tree`
draws what the keeper says. `words` has sizes and ages, `layout` which line stands where, `tree` what stands on it,
`render` the lines as text and as HTML. The command line gives them colours (ijfs.cli.output).
"""
