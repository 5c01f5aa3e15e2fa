"""The client of a headless browser: has the page count, by the protocol of its developer tools."""

import json
import os
import urllib.request

import websocket

with urllib.request.urlopen(f"http://127.0.0.1:{os.environ['PORT']}/json", timeout=30) as answer:
    page = next(one for one in json.load(answer) if one["type"] == "page")
connection = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=30, suppress_origin=True)
expression = "window.asked = (window.asked || 0) + 1"
connection.send(json.dumps({"id": 1, "method": "Runtime.evaluate", "params": {"expression": expression}}))
while (reply := json.loads(connection.recv())).get("id") != 1:
    pass
print(reply["result"]["result"]["value"])
