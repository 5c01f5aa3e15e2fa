"""The process that looks after one instance: its verbs, saves, restores and its end.

`forkserver.py` forks it, `main.py` is its first minute, `server.py` joins its parts: `state.py` (what the instance
is), `lifecycle.py` (how a program comes to run), `save.py` and `save_queue.py` (how it is saved), `guest_port.py` and
`guest_requests.py` (what it asks itself), `control_socket.py` (what clients ask), `autosave.py` (saves after cells).
"""
