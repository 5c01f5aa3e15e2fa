"""The programs of the campaign: how each is started, when it is ready, and how its own client asks it to count.

`start`, `ready` and `ask` are shell scripts, run in a directory of the program's own with PORT, HERE (the scripts
beside this file), PYTHON (an interpreter with the packages) in their environment. `ask` prints how often it was asked,
and something else where what the program holds is not what it was.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).with_name("scripts")
CHECKOUT = Path(__file__).resolve().parents[2]
VENV = CHECKOUT / ".cache/programs-venv"
PORT = 14817
"""Below those that the kernel gives out: a client that comes too early would be connected with itself."""

# Bash speaks TCP.
_CONNECT = "exec 3<>/dev/tcp/127.0.0.1/$PORT; cat <&3"
_LISTENS = "exec 3<>/dev/tcp/127.0.0.1/$PORT"
# For programs that count connections: a socket that listens has the state 0A.
_LISTENS_ONLY = 'grep -qiE ":$(printf %04x $PORT) 0+:0000 0A" /proc/net/tcp*'
_POSTGRES = "/usr/lib/postgresql/15/bin"


class Entry(NamedTuple):
    """One program. `needs`: commands, modules of PYTHON (`python:NAME`) or of the system's Python (`debian:NAME`)."""

    name: str
    what: str
    needs: tuple[str, ...]
    version: str
    start: str
    ask: str
    ready: str = ""

    def missing(self) -> str | None:
        """Why it cannot be run here; None where it can."""
        absent = [need for need in self.needs if not _is_there(need)]
        return f"not installed here: {', '.join(absent)}; `tools/setup-programs` does it" if absent else None


def _is_there(need: str) -> bool:
    kind, _, module = need.rpartition(":")
    if not kind:
        return shutil.which(need) is not None
    python = VENV / "bin/python" if kind == "python" else Path("/usr/bin/python3")
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    return python.exists() and subprocess.run([python, "-c", code], check=False).returncode == 0


def _library(name: str, what: str, module: str, *, debian: bool = False) -> Entry:
    """A Python program in scripts/ that serve.py loads."""
    python = "/usr/bin/python3" if debian else "$PYTHON"
    return Entry(
        name=name,
        what=what,
        needs=((f"debian:{module}" if debian else f"python:{module}"),),
        version=f"{python} -c 'import {module}; print({module}.__version__)' 2>/dev/null",
        start=f"exec {python} -u $HERE/serve.py $HERE/{name}_program.py",
        ask=_CONNECT,
        ready=_LISTENS_ONLY,
    )


ENTRIES = (
    Entry(
        name="redis",
        what="redis-server",
        needs=("redis-server", "redis-cli"),
        version="redis-server --version | grep -o 'v=[0-9.]*'",
        start="exec redis-server --port $PORT --save '' --daemonize no",
        ready="redis-cli -p $PORT ping",
        ask="redis-cli -p $PORT incr asked",
    ),
    Entry(
        name="postgres",
        what="PostgreSQL, as its own user",
        needs=(f"{_POSTGRES}/postgres", "psql"),
        version=f"{_POSTGRES}/postgres --version",
        start='chown postgres . && as() { runuser -u postgres -- "$@"; } && '
        f"as {_POSTGRES}/initdb -D $PWD/data >/dev/null && exec runuser -u postgres -- {_POSTGRES}/postgres "
        "-D $PWD/data -p $PORT -k $PWD -c fsync=off",
        ready="psql -h $PWD -p $PORT -U postgres -qc 'create table if not exists t as select 0 as n'",
        ask="psql -h $PWD -p $PORT -U postgres -Atqc 'update t set n = n + 1 returning n'",
    ),
    Entry(
        name="mariadb",
        what="MariaDB, as root",
        needs=("mariadbd", "mariadb"),
        version="mariadbd --version | grep -o '[0-9][0-9.]*-MariaDB'",
        start="mariadb-install-db --user=root --datadir=$PWD/data --auth-root-authentication-method=normal "
        ">/dev/null 2>&1 && exec mariadbd --user=root --datadir=$PWD/data --port=$PORT "
        "--socket=$PWD/socket --pid-file=$PWD/pid",
        ready="mariadb -S $PWD/socket -e 'create table if not exists test.t (n int)' && "
        "mariadb -S $PWD/socket -e 'insert into test.t select 0 where not exists (select * from test.t)'",
        ask="mariadb -S $PWD/socket -NBe 'update test.t set n = n + 1; select n from test.t'",
    ),
    Entry(
        name="nginx",
        what="nginx, two workers, as root",
        needs=("nginx", "curl"),
        version="nginx -v 2>&1 | grep -o '[0-9.]*$'",
        start="sed s/PORT/$PORT/ $HERE/nginx.conf >nginx.conf && exec nginx -p $PWD -c $PWD/nginx.conf",
        ready=_LISTENS,
        # The third number is how many requests there were; connections that asked for nothing are none.
        ask="curl --noproxy '*' -sf http://127.0.0.1:$PORT/ | awk 'NR == 3 { print $3 }'",
    ),
    Entry(
        name="node",
        what="node, a worker thread and timers",
        needs=("node",),
        version="node --version",
        start="exec node $HERE/program.js",
        ready=_LISTENS_ONLY,
        ask=_CONNECT,
    ),
    Entry(
        name="java",
        what="Java, a pool of threads",
        needs=("java",),
        version="java --version | head -1",
        start="exec java $HERE/Program.java",
        ready=_LISTENS_ONLY,
        ask=_CONNECT,
    ),
    Entry(
        name="go",
        what="Go, goroutines",
        needs=("go",),
        version="go version",
        start="GOCACHE=$PWD/cache go build -o program $HERE/program.go && exec ./program",
        ready=_LISTENS_ONLY,
        ask=_CONNECT,
    ),
    Entry(
        name="r",
        what="R, a fitted model",
        needs=("Rscript",),
        version="Rscript --version 2>&1",
        start="exec Rscript $HERE/program.R",
        ready=_LISTENS_ONLY,
        ask=_CONNECT,
    ),
    _library("duckdb", "DuckDB, a transaction open", "duckdb"),
    _library("polars", "Polars, a lazy scan", "polars"),
    _library("pyspark", "PySpark, local", "pyspark"),
    _library("ray", "Ray, an actor and workers", "ray"),
    _library("dask", "Dask, two workers with nannies", "dask"),
    _library("torch", "torch, DataLoader workers", "torch", debian=True),
    _library("ddp", "torch, two ranks that train together (DDP over gloo)", "torch", debian=True),
    _library("jax", "JAX, on the processor", "jax"),
    _library("tensorflow", "TensorFlow, on the processor", "tensorflow"),
    Entry(
        name="gunicorn",
        what="gunicorn, two preloaded workers",
        needs=("python:gunicorn", "curl"),
        version="$PYTHON -c 'import gunicorn; print(gunicorn.__version__)'",
        start="exec $PYTHON -m gunicorn --preload -w 2 -b 127.0.0.1:$PORT --chdir $HERE gunicorn_app:app",
        ready=_LISTENS,
        ask="curl --noproxy '*' -sf http://127.0.0.1:$PORT/",
    ),
    Entry(
        name="celery",
        what="Celery, two workers, with its Redis",
        needs=("python:celery", "python:redis", "redis-server"),
        version="$PYTHON -c 'import celery; print(celery.__version__)'",
        start="redis-server --port $PORT --save '' >/dev/null & until redis-cli -p $PORT ping; do sleep 0.1; done; "
        "cd $HERE && exec $PYTHON -m celery -A celery_app worker -c 2 --loglevel warning",
        ready="$PYTHON -m celery -A celery_app --workdir $HERE inspect ping -t 5",
        ask="$PYTHON $HERE/celery_app.py",
    ),
    Entry(
        name="tmux",
        what="tmux, a shell in it",
        needs=("tmux",),
        version="tmux -V",
        start="tmux -S $PWD/socket -f /dev/null new-session -d -s own bash --norc && "
        "while tmux -S $PWD/socket has-session -t own; do sleep 1; done",
        ready="tmux -S $PWD/socket send-keys -t own 'n=0' Enter",
        ask="rm -f out; tmux -S $PWD/socket send-keys -t own 'echo $((++n)) >out.new; mv out.new out' Enter; "
        "for i in $(seq 300); do test -e out && break; sleep 0.1; done; cat out",
    ),
    Entry(
        name="chromium",
        what="Chromium, headless, without its own sandbox",
        needs=("chromium", "python:websocket"),
        version="chromium --version 2>/dev/null | grep -o '[0-9.]*' | head -1",
        start="exec chromium --headless --no-sandbox --disable-gpu --user-data-dir=$PWD/profile "
        "--remote-debugging-port=$PORT 'data:text/html,<title>own</title>'",
        ready=_LISTENS_ONLY + " && sleep 1",
        ask="$PYTHON $HERE/browser.py",
    ),
)
