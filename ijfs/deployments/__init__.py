"""Servers that start with a request and rest without one; docs/servers.md. A supervisor owns their ports.

records.py      what was deployed, and what is known of it; a file each in the repository
identity.py     for what a snapshot of it may be used
backend.py      one instance of it: started, restored, parked, saved, ended (blocking)
deployment.py   when which of these happens
room.py         who makes room for whom
front_http.py   requests from its port to its instances, front_tcp.py anything else
supervisor.py   all of a repository; control.py: the wire to it; client.py: its other end
engines.py      what is known of vLLM and SGLang
"""
