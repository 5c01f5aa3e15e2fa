"""How what goes wrong is told over HTTP: a status and `{"code": …, "message": …}`, as the clients read it."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ijfs.live.errors import InstanceExistsError, InstanceExitedError, NoInstanceError
from ijfs_engine.errors import ConflictError, IjfsError, LockedError, PreflightError, StorageError, UnknownNameError


class ApiError(Exception):
    """A refusal with its HTTP status; `retry`: whether the same call may go well a little later."""

    def __init__(self, status: int, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.status, self.retry = status, retry

    def response(self) -> Response:
        """As clients get it. Without a word on it they would repeat a call that was refused for good."""
        headers = {"should-retry": "true" if self.retry else "false"}
        if self.retry:
            headers["retry-after"] = "1"
        return JSONResponse({"code": self.status, "message": str(self)}, self.status, headers)


def not_here(what: str) -> ApiError:
    """A call or option of E2B's that this server does not have."""
    return ApiError(501, f"this server does not have {what} (docs/serve.md lists what it has)")


STATUS: dict[type[IjfsError], int] = {
    NoInstanceError: 404,
    InstanceExitedError: 404,
    UnknownNameError: 404,
    InstanceExistsError: 409,
    ConflictError: 409,
    LockedError: 409,
    PreflightError: 409,
    StorageError: 507,
}


def of(error: IjfsError) -> ApiError:
    """One of ijfs's errors, with its hint."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    return ApiError(status, f"{error}{f' ({error.hint})' if error.hint else ''}")


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's handler of ApiError, IjfsError and its own errors."""
    match error:
        case ApiError():
            return error.response()
        case IjfsError():
            return of(error).response()
        case HTTPException():
            return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()
        case _:
            return ApiError(500, "something went wrong inside the server; its log says what").response()
