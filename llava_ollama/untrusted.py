"""Text that came from somebody else: what engines would obey in it is made inert.

Every engine parses a prompt as one text, in which control tokens and the marks of pictures act
wherever they stand: `<|eot_id|>` in a user's words ends the user's turn (ollama#15931). Covered:

- `<|...|>` around ASCII without white space, `<`, `>` and `|`: every control token of Llama-3's
  vocabulary, and of most others (`<|im_end|>`, `<|image|>`);
- Ollama's marks `[img]` and `[img-0]`, which move a picture, double it or end the request with an
  error;
- llama.cpp's marks `<__media__>`, `<__image__>` and those with a random part;
- `control`: what else acts in one engine. For a model in Ollama whose chat template is not
  Llama-3's these are the control tokens of its own vocabulary, say `</s>` and `[INST]`. For
  Llama-3 they are none, so that HTML's `<s>` stays as it is; a token of another form that somebody
  added to Llama-3's vocabulary is not known here.

Engines compare exactly, so that look-alikes, full-width characters and a space inside are harmless,
and nothing is done about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

BREAK = "\u2060"
"""WORD JOINER: no white space, of no width, and part of no token that acts. Measured to stop all of
them on each engine, while the text reads as before; removing them instead fails where they are
nested, since `<|eot<|eot_id|>_id|>` becomes one."""

_ACTS = (
    r"<\|[!-;=?-{}~]++\|>",
    r"\[img(?:-[0-9]+)?\]",
    r"<__(?:media|image)[0-9A-Za-z_]*__>",
)


def inert(text: str, control: Iterable[str] = ()) -> str:
    """Return `text` with a `BREAK` after the first character of all that would act in it.

    The rest stays as it is, and what is inert already stays wholly so. `control` are strings that
    act as well, of two characters or more.
    """
    return _pattern(tuple(control)).sub(rf"\g<0>{BREAK}", text)


def picture_mark(text: str) -> str | None:
    """Return the first thing in `text` that Ollama takes for a picture, numbered as in a prompt."""
    match = re.search(r"\[img-[0-9]+\]", text)
    return match[0] if match else None


@lru_cache(maxsize=16)
def _pattern(control: tuple[str, ...]) -> re.Pattern[str]:
    """Match the first character of what acts; only that, since what acts may overlap."""
    everything = (*_ACTS, *map(re.escape, control))
    return re.compile(rf"(?=(?:{'|'.join(everything)})).", re.DOTALL)
