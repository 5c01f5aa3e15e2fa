"""Init of a pid namespace in which the pager's tests dump and restore: python pager_init.py, a list per line.

Each line of standard input is a Python list, an argv; the answer is its exit status and output. With "&" in front the
command is started in a session of its own and the answer is its pid; with "kill" a pid is killed and waited for. In
here nobody else takes the pids that a restore needs again, and all that a test leaves dies with this process.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys


def reap() -> None:
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def main() -> None:
    for line in sys.stdin:
        argv = ast.literal_eval(line)
        if argv[0] == "&":
            child = subprocess.Popen(
                argv[1:],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            print(repr(child.pid), flush=True)
        elif argv[0] == "kill":
            os.kill(int(argv[1]), signal.SIGKILL)
            print(repr(os.waitpid(int(argv[1]), 0)[1]), flush=True)
        else:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            print(repr((done.returncode, done.stdout + done.stderr)), flush=True)
        reap()


if __name__ == "__main__":
    main()
