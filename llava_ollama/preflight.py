"""Pre-flight: what the headers of two weight files tell before anything is sent.

What cannot work is refused. What engines will miss is told in few words: of the published files,
which work, nobody wants to read a page at every install.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from llava_ollama.errors import TemplateError
from llava_ollama.findings import Finding

LLAMA3_TOKENS = frozenset({"<|start_header_id|>", "<|eot_id|>"})
_COSTLY = "feature layer"
"""The check whose finding costs right answers in Ollama too (measured: 26 of 60, not 60)."""


def preflight(
    model: Path | None, projector: Path | None, *, llama3: bool, mending: bool = False
) -> tuple[Finding, ...]:
    """Judge the files as far as they are on this machine; return what engines will miss in them.

    Raises:
        GGUFError: a file is damaged, or the two do not belong together.
        TemplateError: `llama3`, the Llama-3-instruct template, does not fit the model.
    """
    from llava_ollama.gguf import checks, reader

    headers = [reader.read(path) if path else None for path in (model, projector)]
    if headers[0] and headers[1]:
        checks.pair(headers[0], headers[1])
    if headers[0] and llama3 and not checks.has_llama3_vocabulary(headers[0]):
        raise no_template(headers[0].path.name)
    # What a mending of the projector leaves open it says itself.
    judged = headers[:1] if mending else headers
    return tuple(
        dataclasses.replace(found, detail=f"`{header.path.name}` {found.detail}")
        for header in judged
        if header
        for found in checks.health(header)
    )


def remarks(findings: Iterable[Finding]) -> list[str]:
    """Return the findings in one sentence, and what costs right answers in one of its own."""
    findings = list(findings)
    said = [
        f"{found.detail}; `llava-ollama install --mend` sets it"
        for found in findings
        if found.check == _COSTLY
    ]
    if others := dict.fromkeys(found.check for found in findings if found.check != _COSTLY):
        said.append(
            f"these files lack what today's engines look for ({', '.join(others)}); Ollama runs "
            "them, and `llava-ollama inspect FILE` says what it means for others"
        )
    return said


def no_template(file: str) -> TemplateError:
    """Return the error for a model that the Llama-3-instruct template does not fit."""
    return TemplateError(
        f"`{file}` is not a Llama-3 model: its vocabulary lacks `<|start_header_id|>` "
        "and `<|eot_id|>`",
        hint="Give its chat template as a Go template with `--template FILE`",
    )
