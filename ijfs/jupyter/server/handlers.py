"""HTTP around the panel's API: who may ask, what is read, and how an error is answered. Called by __init__.py.

GET for what only looks, POST for what changes something, or brings a notebook along; Jupyter's own authorizer is asked
for the resource `ijfs`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from ijfs.jupyter.server import names, requests
from ijfs.jupyter.server.api import Answer, Api
from ijfs.jupyter.server.events import Events
from ijfs.jupyter.server.forks import Forks
from ijfs.jupyter.server.kernels import Kernels, UnknownKernelError
from ijfs.jupyter.server.programs import Programs
from ijfs.live.errors import CriuError, KeeperError, NoInstanceError
from ijfs_engine.errors import CorruptError, IjfsError, NoRepositoryError, StorageError, UnknownNameError

RESOURCE = "ijfs"
"""What an authorizer is asked for."""

Verb = tuple[type[requests.Request], Callable[[Any], Awaitable[Answer]]]


def add_handlers(app: Any) -> None:
    """Serve the API below `/ijfs/api` of a Jupyter server."""
    kernels = Kernels(app)
    events = Events(app.event_logger, kernels.kernel_of)
    api, programs, forks = Api(kernels, events), Programs(kernels), Forks(kernels)
    looking: dict[str, Verb] = {
        "info": (requests.Info, api.info),
        "tree": (requests.Tree, api.tree),
        "status": (requests.Status, api.status),
        "document": (requests.DocumentOf, api.document),
        "compare": (requests.Compare, api.compare),
        "offer": (requests.Offer, forks.offer),
    }
    changing: dict[str, Verb] = {
        "compare": looking["compare"],
        "save": (requests.Save, programs.save),
        "restore": (requests.Restore, programs.restore),
        "undo": (requests.Undo, programs.undo),
        "give": (requests.Give, programs.give),
        "input": (requests.Input, programs.input),
        "fork": (requests.Fork, forks.fork),
        "resume": (requests.Resume, forks.resume),
        "tag": (requests.Tag, partial(api.using, do=names.tag)),
        "untag": (requests.Untag, partial(api.using, do=names.untag)),
        "rename": (requests.Rename, partial(api.using, do=names.rename)),
        "delete": (requests.Delete, partial(api.using, do=names.delete)),
        "adopt": (requests.Adopt, partial(api.using, do=names.adopt)),
    }
    base = url_path_join(app.web_app.settings["base_url"], "ijfs", "api")
    handlers = [
        (url_path_join(base, name), Handler, {"looks": looking.get(name), "changes": changing.get(name)})
        for name in looking | changing
    ]
    app.web_app.add_handlers(".*$", handlers)


class Handler(APIHandler):
    """What is below one name."""

    auth_resource = RESOURCE

    def initialize(self, looks: Verb | None, changes: Verb | None) -> None:
        """What it serves: a request that changes nothing, whose fields are in the query, and one whose fields are in
        the body."""
        self._looks, self._changes = looks, changes

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Look."""
        given = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        await self._answered(self._looks, given)

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Do it."""
        body = self.request.body.strip()
        try:
            given = json.loads(body) if body else {}
        except ValueError as error:
            self._refused(400, "UsageError", f"the body is no JSON: {error}", None)
            return
        await self._answered(self._changes, given)

    async def _answered(self, verb: Verb | None, given: Any) -> None:
        if verb is None:
            raise web.HTTPError(405)
        kind, do = verb
        try:
            request = msgspec.convert(given, kind, strict=False)
        except msgspec.ValidationError as error:
            self._refused(400, "UsageError", f"this request is not understood: {error}", None)
            return
        try:
            answer = await do(request)
        except IjfsError as error:
            self._refused(status_of(error), type(error).__name__, str(error), error.hint)
        else:
            await self.finish(json.dumps(msgspec.to_builtins(answer)))

    def _refused(self, status: int, kind: str, message: str, hint: str | None) -> None:
        self.set_status(status)
        self.finish(json.dumps({"message": message, "hint": hint, "type": kind, "reason": ""}))


_NOT_THERE = (UnknownKernelError, UnknownNameError, NoInstanceError, NoRepositoryError)
_BROKEN = (CorruptError, CriuError, KeeperError, StorageError)


def status_of(error: IjfsError) -> int:
    """The HTTP status of an error: what is asked for is not there, cannot be done now, or something is broken."""
    return 404 if isinstance(error, _NOT_THERE) else 500 if isinstance(error, _BROKEN) else 409
