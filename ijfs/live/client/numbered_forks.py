"""A program of its own that makes live copies of a snapshot, each with its number in its environment.

Run by a keeper whose program asks for copies of itself (keeper/outside.py): REPOSITORY SNAPSHOT WISH COUNT, and their
secrets, an object of JSON, on its standard input. Prints their names.
"""

from __future__ import annotations

import json
import sys

from ijfs.live.client.api import fork
from ijfs.live.model.environment import NUMBER_VARIABLE
from ijfs_engine.errors import IjfsError


def main(repo: str, snapshot: str, wish: str, count: str) -> int:
    """The exit code."""
    numbers = range(1, int(count) + 1)
    secrets = json.loads(sys.stdin.read() or "{}")
    env = [{NUMBER_VARIABLE: str(n)} for n in numbers]
    try:
        made = fork(repo, snapshot, count=len(numbers), wish=wish, env=env, secrets=secrets)
    except IjfsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(info.name for info in made) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
