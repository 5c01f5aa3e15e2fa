"""A Python program of the campaign: loads a script beside this one and answers each connection with its `ask()`."""

import importlib.util
import os
import socket
import sys


def main(path: str) -> None:
    spec = importlib.util.spec_from_file_location("program", path)
    program = importlib.util.module_from_spec(spec)
    sys.modules["program"] = program  # workers that are forked or spawned find it
    spec.loader.exec_module(program)
    program.begin()
    server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
    count = 0
    while True:
        connection, _ = server.accept()
        count += 1
        try:
            program.ask(count)
            answer = str(count)
        except BaseException as error:
            answer = f"wrong: {type(error).__name__}: {error}"
        connection.sendall(answer.encode())
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
