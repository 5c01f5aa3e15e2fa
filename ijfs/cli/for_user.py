"""A call of a user without root, done by root: a program of its own, started by ijfs.serve.users.

    python -m ijfs.cli.for_user FD        (a request in JSON: uid, repo, argv, cwd, env, programs)

Its standard streams are the user's. Nothing of the user's environment is this process's: it goes to the user's
programs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ijfs.cli.callers import Caller
from ijfs.cli.main import main


def run() -> None:
    """The program."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        request = json.load(file)
    caller = Caller(request["uid"], Path(request["repo"]), request["cwd"], request["env"], request["programs"])
    main(request["argv"], caller=caller)


if __name__ == "__main__":
    run()
