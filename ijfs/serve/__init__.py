"""`ijfs serve`: sandboxes for programs on other machines and for users without root, over HTTP and a Unix socket.

A process of its own (docs/serve.md) above ijfs.sdk. `app` puts it together: `control` is the control plane, `data`
leads each request for a sandbox to its `envd` or its `interpreter`, `sandboxes` knows which there are and what becomes
of them.
"""
