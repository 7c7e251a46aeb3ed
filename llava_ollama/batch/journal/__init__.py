"""The journal of a run: what is to be asked, what was answered, and what was under way.

A run is a folder with a SQLite file. `database` has its tables, `place` says where it lies,
`writer` is the one thread that writes, `leases` knows what is with a host. `Journal` goes on with
a run, `JournalFeed` is its side towards a runner, and `Reading` looks at it from anywhere.
"""

from __future__ import annotations

from llava_ollama.batch.journal.changes import Entry
from llava_ollama.batch.journal.config import Asked, Config
from llava_ollama.batch.journal.feed import JournalFeed
from llava_ollama.batch.journal.journal import Journal
from llava_ollama.batch.journal.reading import Counts, HostCounts, Reading

__all__ = [
    "Asked",
    "Config",
    "Counts",
    "Entry",
    "HostCounts",
    "Journal",
    "JournalFeed",
    "Reading",
]
