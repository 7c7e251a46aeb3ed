"""The four ways to ask, so that one test can hold all of them to the same behaviour."""

from __future__ import annotations

import asyncio
from typing import Any

from llava_ollama import Answer, AsyncLlava, Llava

MODES = ("ask", "stream", "async ask", "async stream")


def answer(
    mode: str, *question: Any, options: dict[str, Any] | None = None, **client: Any
) -> Answer:
    """Make a client, ask it one question in this way, and close it."""
    if mode.startswith("async"):
        return asyncio.run(_async(mode, question, options, client))
    with Llava(**client) as llava:
        if mode == "ask":
            return llava.ask(*question, options=options)
        last = None
        for last in llava.stream(*question, options=options):  # noqa: B007 - the last one counts
            pass
    assert last is not None
    assert last.answer is not None
    return last.answer


async def _async(
    mode: str, question: tuple[Any, ...], options: dict[str, Any] | None, client: dict[str, Any]
) -> Answer:
    async with AsyncLlava(**client) as llava:
        if mode == "async ask":
            return await llava.ask(*question, options=options)
        chunks = [chunk async for chunk in llava.stream(*question, options=options)]
    assert chunks[-1].answer is not None
    return chunks[-1].answer
