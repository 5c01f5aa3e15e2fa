"""What a request does to a kernel's program: it is saved, or taken back. Made by handlers.py; what blocks runs in
threads."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec

from ijfs.history.notebooks import Document
from ijfs.jupyter.server import requests
from ijfs.jupyter.server.documents import document_of
from ijfs.jupyter.server.kernels import Kernels, Target
from ijfs.jupyter.server.opening import in_repository
from ijfs.live.checkpoint.undoing import before_cell, count_of
from ijfs.live.client import api as client
from ijfs.live.client.api import Event, InstanceInfo, Notice, SaveResult
from ijfs_engine import Repository, Snapshot

Answer = dict[str, Any]


SENDING_S = 0.5
"""How long a channel that is opened for one message stays open: nobody answers it."""


class Programs:
    """The kernels of one Jupyter server, as programs that can be saved and taken back."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    async def save(self, request: requests.Save) -> Answer:
        """Save a kernel's program with the notebook as the browser has it."""
        target = self._kernels.target(request.kernel)

        def do() -> SaveResult:
            with client.connect(target.repo, target.instance) as keeper:
                return keeper.save(
                    request.message, notebook=packed(request.document), wait=request.wait, verify=request.verify
                )

        return dict(msgspec.to_builtins(await asyncio.to_thread(do)))

    async def give(self, request: requests.Give) -> Answer:
        """A save that comes from elsewhere has asked for the notebook as the browser has it."""
        target = self._kernels.target(request.kernel)

        def do() -> None:
            with client.connect(target.repo, target.instance) as keeper:
                keeper.give(request.ticket, packed(request.document) or b"")

        await asyncio.to_thread(do)
        return {"taken": True}

    async def input(self, request: requests.Input) -> Answer:
        """Answer a cell that waits: one that went back with its kernel, whose box the browser does not have."""
        asking = self._kernels.target(request.kernel).manager.client()
        asking.start_channels(shell=False, iopub=False, hb=False, control=False)
        try:
            asking.input(request.value)
            await asyncio.sleep(SENDING_S)
        finally:
            asking.stop_channels()
        return {}

    async def restore(self, request: requests.Restore) -> Answer:
        """Have a kernel go back in place."""
        target = self._kernels.target(request.kernel)
        return await self._back(target, request, request.snapshot, save_first=request.save_first)

    async def undo(self, request: requests.Undo) -> Answer:
        """Have a kernel go back to before its last cell, or as near as a snapshot is. UnknownNameError."""
        target = self._kernels.target(request.kernel)
        info = await asyncio.to_thread(client.describe, target.repo, target.instance)
        found = await asyncio.to_thread(in_repository, target.repo, lambda r: before_last_cell(r, info))
        answer = await self._back(target, request, found.id.hex(), save_first=True)
        undone = _undone(info, found)
        return {**answer, "cells": undone, "exact": undone == 1}

    async def _back(
        self, target: Target, request: requests.Restore | requests.Undo, snapshot: str, *, save_first: bool
    ) -> Answer:
        notices: list[str] = []

        def hear(event: Event) -> None:
            if isinstance(event, Notice):
                notices.append(event.text)

        def do() -> tuple[InstanceInfo, Document | None]:
            info = client.restore(
                target.repo,
                snapshot,
                target.instance,
                replace=True,
                save_first=save_first,
                notebook=packed(request.document),
                busy=request.busy,
                on_event=hear,
            )
            return info, _document(target.repo, info.snapshot)

        info, document = await asyncio.to_thread(do)
        target.speak_with(info)
        return {
            "snapshot": info.snapshot,
            "left": info.left,
            "document": document,
            "notices": notices,
            "count": info.kernel.count if info.kernel is not None else None,
            "waiting_for_input": info.kernel is not None and info.kernel.prompt is not None,
            "instance": info.name,
        }


def packed(document: Document | None) -> bytes | None:
    """A notebook as Jupyter writes it."""
    return None if document is None else (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def before_last_cell(repository: Repository, info: InstanceInfo) -> Snapshot:
    """Where undo goes back to. UnknownNameError."""
    ran = info.kernel.count if info.kernel is not None else None
    return before_cell(repository, bytes.fromhex(info.snapshot) if info.snapshot else None, ran)


def _undone(info: InstanceInfo, found: Snapshot) -> int | None:
    """How many cells a way back undoes; None where that is not known."""
    ran, count = info.kernel.count if info.kernel is not None else None, count_of(found)
    return None if ran is None or count is None else ran - count


def _document(repo: Path, snapshot: str | None) -> Document | None:
    if snapshot is None:
        return None
    return in_repository(repo, lambda r: document_of(r.reader(), r.snapshot(bytes.fromhex(snapshot))))
