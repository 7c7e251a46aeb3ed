"""The tokenizer: byte-level BPE with the pre-tokenizer of Llama 3, as llama.cpp has it.

Source of the pattern and of the byte table: llama.cpp, `llama-bpe` in src/llama-vocab.cpp, and
OpenAI's GPT-2 `bytes_to_unicode`.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import regex

BEGIN, END, HEAD, HEAD_END, TURN_END = SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
_WORD = regex.compile(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = regex.compile("(" + "|".join(regex.escape(text) for text in SPECIAL) + ")")


def _byte_letters() -> list[str]:
    """Return the visible character that stands for each of the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


BYTES = _byte_letters()


class Tokenizer:
    """Text to token numbers: 256 bytes, then one token a merge, then the special ones."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.merges = merges
        self.ordinary = [*BYTES, *(left + right for left, right in merges)]
        self.tokens = [*self.ordinary, *SPECIAL]
        self.number = {text: number for number, text in enumerate(self.tokens)}
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the tokens of plain text; a special token's name is text like any other."""
        return [token for word in _WORD.findall(text) for token in self._word(word)]

    def encode_marked(self, text: str) -> list[int]:
        """Return the tokens of a prompt where the special tokens' names mean those tokens."""
        tokens: list[int] = []
        for part in _SPECIAL.split(text):
            tokens += [self.number[part]] if part in SPECIAL else self.encode(part)
        return tokens

    def _word(self, word: str) -> list[int]:
        if word not in self._words:
            parts = tuple(BYTES[byte] for byte in word.encode())
            while pair := min(
                pairwise(parts),
                key=lambda pair: self._rank.get(pair, len(self._rank)),
                default=None,
            ):
                if pair not in self._rank:
                    break
                parts = _joined(parts, pair)
            self._words[word] = [self.number[part] for part in parts]
        return self._words[word]


def train(texts: Counter[str]) -> Tokenizer:
    """Return the tokenizer that has every word of `texts` as one token."""
    words: Counter[tuple[str, ...]] = Counter()
    for text, times in texts.items():
        for word in _WORD.findall(text):
            words[tuple(BYTES[byte] for byte in word.encode())] += times
    merges: dict[str, tuple[str, str]] = {}
    while pairs := _pairs(words):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.setdefault("".join(best), best)
        joined: Counter[tuple[str, ...]] = Counter()
        for parts, times in words.items():
            joined[_joined(parts, best)] += times
        words = joined
    return Tokenizer([*merges.values()])


def _pairs(words: Counter[tuple[str, ...]]) -> Counter[tuple[str, str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    for parts, times in words.items():
        for pair in pairwise(parts):
            pairs[pair] += times
    return pairs


def _joined(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    at = 0
    while at < len(parts):
        step = 2 if parts[at : at + 2] == pair else 1
        out.append("".join(parts[at : at + step]))
        at += step
    return tuple(out)
