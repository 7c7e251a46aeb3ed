"""A server in a process of its own that speaks Ollama 0.34's API, as fast as it is told to be.

    with served({1: 20, 16: 320}, slots=16) as server: ...   # tokens per second, by how many

What it says depends on the picture only: its digest, and so many tokens. Its replies have the
shape of 0.34.4's. `GET /counts` tells what it was asked so far.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.simulated import Curve, Shared, points

NAME = "paced:latest"
TOKENS = 10
"""Of an answer, on average; half as many more or less."""
_LAYERS = [f"sha256-{digit * 64}" for digit in "ab"]
SHOWN = {
    "modelfile": "".join(f"FROM /m/blobs/{layer}\n" for layer in _LAYERS),
    "parameters": "num_ctx                        4096",
    "template": "{{ .Prompt }}",
    "details": {"format": "gguf", "family": "llama", "quantization_level": "Q4_K_S"},
    "model_info": {"general.architecture": "llama", "llama.context_length": 4096},
    "projector_info": {"clip.vision.image_size": 112},
    "capabilities": ["completion", "vision"],
}
TAG = {"name": NAME, "model": NAME, "size": 3_285_944, "digest": "c" * 64}
FIXED: Mapping[str, Any] = {
    "/api/version": {"version": "0.34.4"},
    "/api/tags": {"models": [TAG]},
    "/api/ps": {"models": []},
    "/api/show": SHOWN,
}
ERRORS = {
    "500": "an error was encountered while running the model",
    "503": "server busy, please try again.  maximum pending requests exceeded",
    "stall": "",
}
Body = dict[str, Any]


@dataclass
class Server:
    """One that runs."""

    url: str
    process: subprocess.Popen[str]

    def counts(self) -> dict[str, int]:
        """Return `asked` (questions that came) and `answered`."""
        with urllib.request.urlopen(f"{self.url}/counts", timeout=10) as reply:
            counts: dict[str, int] = json.load(reply)
        return counts

    def kill(self) -> None:
        """End it as a machine ends that loses its power."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def served(
    rates: Mapping[int, float], slots: int = 10**9, *, faults: Sequence[str] = (), every: int = 100
) -> Iterator[Server]:
    """Serve with so many tokens per second at so many questions at once (`simulated.points`).

    Of `every` questions one meets a fault, the next of `faults`: a status, or "stall".
    """
    law = json.dumps({"rates": rates, "slots": slots, "faults": faults, "every": every})
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.served", law], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield Server(process.stdout.readline().strip(), process)
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@dataclass
class _Serving:
    shared: Shared
    faults: Sequence[str] = ()
    every: int = 100
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("asked", "answered"), 0))
    ready: dict[int, asyncio.Event] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self) -> None:
        """Answer what is over, when it is over."""
        while True:
            self.changed.clear()
            left = self.shared.ends() - time.monotonic()
            if left <= 0:
                self.ready.pop(self.shared.pop()).set()
                continue
            try:
                async with asyncio.timeout(min(left, 3600.0)):
                    await self.changed.wait()
            except TimeoutError:
                pass

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which stays for more requests."""
        try:
            while line := await reader.readline():
                path, length = line.split()[1].decode(), 0
                while (header := await reader.readline()).strip():
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                body = json.loads(await reader.readexactly(length) or b"{}")
                status, said = await self.reply(path, body)
                kind = "application/x-ndjson" if body.get("stream") else "application/json"
                head = f"HTTP/1.1 {status} .\r\nContent-Type: {kind}\r\n"
                writer.write(f"{head}Content-Length: {len(said)}\r\n\r\n".encode() + said)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def reply(self, path: str, body: Body) -> tuple[int, bytes]:
        if path == "/counts":
            return 200, json.dumps(self.counts).encode()
        if path in {"/api/chat", "/v1/chat/completions"} and body.get("messages"):
            asked = self.counts["asked"] = self.counts["asked"] + 1
            if self.faults and asked % self.every == self.every // 2:
                return await _broken(self.faults[asked // self.every % len(self.faults)])
            return 200, await self.chat(path, body)
        if path in FIXED:
            return 200, json.dumps(FIXED[path]).encode()
        return 404, json.dumps({"error": f"model '{body.get('model')}' not found"}).encode()

    async def chat(self, path: str, body: Body) -> bytes:
        digest = hashlib.sha256(_picture(body)).digest()
        tokens = TOKENS // 2 + digest[0] % (TOKENS + 1)
        number, begun = self.counts["asked"], time.monotonic()
        self.ready[number] = over = asyncio.Event()
        self.shared.add(begun, tokens, number)
        self.changed.set()
        await over.wait()
        self.counts["answered"] += 1
        text = f"A picture with {digest.hex()[:8]}."
        if path.startswith("/v1"):
            return _completion(text, tokens)
        nanoseconds = int((time.monotonic() - begun) * 1e9)
        return _chat(text, tokens, nanoseconds)


async def _broken(fault: str) -> tuple[int, bytes]:
    if fault == "stall":
        await asyncio.sleep(3600)
    return int(fault), json.dumps({"error": ERRORS[fault]}).encode()


def _picture(body: Body) -> bytes:
    message = body["messages"][-1]
    texts = message.get("images") or [json.dumps(message["content"])]
    try:
        return base64.b64decode(texts[0], validate=True)
    except binascii.Error:
        return str(texts[0]).encode()


def _chat(text: str, tokens: int, nanoseconds: int) -> bytes:
    reply = {
        "model": NAME,
        "created_at": "2026-11-25T09:15:47.668862662Z",
        "message": {"role": "assistant", "content": text},
        "done": True,
        "done_reason": "stop",
        "total_duration": nanoseconds,
        "load_duration": 1_598_407,
        "prompt_eval_count": 77,
        "prompt_eval_cached_count": 0,
        "prompt_eval_duration": nanoseconds // 2,
        "eval_count": tokens,
        "eval_duration": nanoseconds // 2,
    }
    return json.dumps(reply).encode() + b"\n"


def _completion(text: str, tokens: int) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 77, "completion_tokens": tokens, "total_tokens": 77 + tokens}
    reply = {
        "id": "chatcmpl-67",
        "object": "chat.completion",
        "created": 1_795_598_147,
        "model": NAME,
        "system_fingerprint": "fp_ollama",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }
    return json.dumps(reply).encode()


async def _serve(curve: Curve, faults: Sequence[str], every: int) -> None:
    serving = _Serving(Shared(curve, now=time.monotonic()), faults, every)
    server = await asyncio.start_server(serving.meet, "127.0.0.1", 0, limit=1 << 26)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await serving.work()


if __name__ == "__main__":
    law = json.loads(sys.argv[1])
    shape = points({int(at_once): rate for at_once, rate in law["rates"].items()})
    asyncio.run(_serve(Curve(shape.rate, law["slots"]), law["faults"], law["every"]))
