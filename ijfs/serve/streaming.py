"""An answer that ends when the client leaves, also where there is nothing to send just then."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class WhileWanted(StreamingResponse):
    """A streamed answer whose source is left at once when the client is gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:

            async def answer() -> None:
                await self.stream_response(send)
                tasks.cancel_scope.cancel()

            tasks.start_soon(answer)
            await self.listen_for_disconnect(receive)
            tasks.cancel_scope.cancel()
        source: AsyncIterator[object] = self.body_iterator  # type: ignore[assignment]
        if isinstance(source, AsyncGenerator):
            await source.aclose()
