"""What becomes of a question, as a value for the journal."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from llava_ollama.batch.asking import Said
from llava_ollama.batch.failures import Blame, Verdict
from llava_ollama.batch.work import Job, Outcome, Question
from llava_ollama.errors import LlavaOllamaError

EMPTY = "the model answered without a word"


@dataclass(frozen=True)
class Patience:
    """How long to wait for what; in seconds, but for `attempts`."""

    hosts: float = 600.0
    """Without an answer of any host, until the run ends."""
    again: float = 5.0
    """Before a question is put a second time; four times as long before the third."""
    attempts: int = 3

    def put_off(self, outcome: Outcome) -> Outcome:
        """Return `outcome` as one that is asked again, or as failed after so many attempts."""
        if outcome.attempts >= self.attempts:
            return replace(outcome, state="failed")
        pause = self.again * 4 ** max(0, outcome.attempts - 1)
        return replace(outcome, state="retry", retry_at=time.time() + pause)

    def failed(
        self, job: Job, question: Question, verdict: Verdict, error: LlavaOllamaError
    ) -> Outcome:
        """Return what becomes of a question that met `error`."""
        blank = Outcome(
            item=job.item.id,
            ask=question.id,
            state="gone" if verdict.blame is Blame.GONE else "failed",
            attempts=question.attempts + 1,
            error_kind=verdict.kind,
            # A path in it may have bytes that are not UTF-8.
            error=error.message.encode(errors="backslashreplace").decode(),
        )
        return self.put_off(blank) if verdict.blame is Blame.PASSING else blank

    def answered(self, job: Job, question: Question, said: Said) -> Outcome:
        """Return what becomes of a question that got an answer; one without words is none."""
        outcome = Outcome(
            item=job.item.id,
            ask=question.id,
            state="done",
            text=said.text,
            finish=said.finish,
            tokens=said.tokens,
            attempts=question.attempts + 1,
        )
        if said.text:
            return outcome
        return self.put_off(replace(outcome, finish=None, error_kind="empty", error=EMPTY))
