"""A server of the Model Context Protocol: an agent works in a live kernel, goes back, branches. Started by `ijfs mcp`.

`sessions.py` is what the tools do, on the SDK's awaited twins; `tools.py` their names, words and results; `server.py`
runs them over stdio or HTTP. Needs the extra `mcp`.
"""
