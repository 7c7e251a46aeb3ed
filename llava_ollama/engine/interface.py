"""The seam between questions and whoever answers them.

An engine gets a `Request` (messages with prepared pictures) and gives an `Answer`. How a picture
and a chat template reach the model is the engine's business; what they must amount to, character
for character, is Meta's Llama-3-instruct template with each picture before the text of its turn.
Each engine sends `Request.spoken`, so that nobody's words are taken for the template's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from llava_ollama.images import PreparedPicture
from llava_ollama.untrusted import inert

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Message:
    """One turn. Only a user's turn has pictures."""

    role: Role
    text: str
    pictures: tuple[PreparedPicture, ...] = ()


@dataclass(frozen=True)
class Request:
    """A conversation that ends with a user's turn, and the options to answer it with.

    `options` has the names of Ollama's model options: `temperature`, `seed`, `num_predict`,
    `top_k`, `top_p`, `stop`, ... `trusted` text is sent as it is, control tokens and all. `schema`
    is a JSON schema: the engine makes a grammar of it, and writes only what that allows.
    """

    messages: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False
    schema: Mapping[str, Any] | None = None

    def spoken(self, control: Iterable[str] = ()) -> tuple[Message, ...]:
        """Return the messages as they may be sent: nothing in their text acts, unless `trusted`.

        `control` are strings that act in this engine, beside those of `llava_ollama.untrusted`.
        """
        if self.trusted:
            return self.messages
        return tuple(replace(said, text=inert(said.text, control)) for said in self.messages)


@dataclass(frozen=True)
class Usage:
    """Token counts; a picture counts as many prompt tokens as the projector makes of it."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Times:
    """Seconds: the whole request, loading the model, reading the prompt, writing the answer."""

    total: float
    load: float
    prompt: float
    completion: float


@dataclass(frozen=True)
class Answer:
    """What the model said, and enough to say later how it came about.

    `finish` is `stop` when the model ended its turn and `length` when a limit did.
    `model_digest` names the exact model, projector, template and parameters
    (`llava_ollama.package`); None where an engine cannot know them.
    """

    text: str
    finish: Finish
    usage: Usage
    times: Times
    model_digest: str | None
    engine: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one carries the whole `Answer` as well."""

    text: str
    answer: Answer | None = None

    def __str__(self) -> str:
        return self.text


class Engine(Protocol):
    """Answers requests. A stream that ends without an `Answer` raises `IncompleteAnswer`."""

    name: str

    def image_size(self) -> int:
        """Return the side in pixels of the square that the model sees.

        Raises:
            UsageProblem: the model has no vision.
        """
        ...

    def answer(self, request: Request) -> Answer:
        """Return the whole answer."""
        ...

    def stream(self, request: Request) -> Generator[Chunk]:
        """Yield the answer as it is made; closing the iterator stops the work."""
        ...

    def close(self) -> None:
        """Release connections, and the model where it lives in this process."""
        ...


class AsyncEngine(Protocol):
    """The same as `Engine`, for asyncio."""

    name: str

    async def image_size(self) -> int:
        """See `Engine.image_size`."""
        ...

    async def answer(self, request: Request) -> Answer:
        """See `Engine.answer`."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """See `Engine.stream`."""
        ...

    async def close(self) -> None:
        """See `Engine.close`."""
        ...
