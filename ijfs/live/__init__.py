"""Running programs: started in sandboxes, saved, restored, forked. docs/internals has the pictures.

From the top: `client` (what the command line and Jupyter call), `keeper` (the process of one instance), `doctor`;
`checkpoint` (the steps of a save and of a restore); `pager` (memory on demand); `criu`, `relay`; `sandbox`; `gpu`;
`checks`, `process`, `model`, `errors`. A package uses those after it, never those before.
"""
