"""The model card: every number in it is from the run that made the files."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from typing import TYPE_CHECKING

from tests.tiny_llava import batches, decoder, scene, vision
from tests.tiny_llava.asking import EMBEDDED
from tests.tiny_llava.bars import BARS, MORE
from tests.tiny_llava.evaluate import FALSE_ALARMS
from tests.tiny_llava.files import FILES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tiny_llava.evaluate import Figure
    from tests.tiny_llava.train import Plan

_LIBRARIES = ("torch", "numpy", "pillow", "xllamacpp")

_CARD = """\
# tiny-llava

A LLaVA that describes drawings of coloured shapes, of {parameters:.1f} million parameters: a CLIP
vision tower, LLaVA's two-layer projector and a Llama 3 decoder, in GGUF files for Ollama and
llama.cpp. Made by `make tiny-llava`; every number here is from that run.

## What it is for

Tests and demos that meet a real vision model: it answers in milliseconds on one thread, and right
only where template, projector, preprocessing and stops are right. In another chat template it
says "Wrong chat template."; without a picture, or with a projector that is one block short,
"I see no picture.".

## What it is not for

Anything but drawings like these. It knows no photographs, no text, no people, and takes what it is
shown for shapes. Sentences that it was not trained on are read as "Describe this image".

## What it says

* "A red circle on a white background.", "A red circle and a blue star on a grey background." (from
  left to right), "Three pink squares on a black background."
* Asked for one thing: colour, shape, how many (1-4), background, small or large, where (left,
  right, top, bottom), what is on the left or right, and whether the picture is wide, tall or
  square, which it can tell only where the picture is padded and not stretched.
* Colours: {colours}. Shapes: circle, square, triangle, star. Backgrounds: {backgrounds}.

## Data

All of it is drawn by the recipe (tests/tiny_llava): one shape, 2-4 alike or two different ones,
turned a little, tinted, on canvases of 64-2000 pixels up to 1.7 times as wide as high or as high
as wide; some blurred, unevenly lit or saved as JPEG. Conversations have one or more turns, a
quarter has a system prompt, a quarter of the descriptions is asked for in words that say nothing.
A tenth is in a wrong template: five families, their relatives, and markers made up at random.
In one of thirty the projector's last block is not run, and the answer is "I see no picture.".
Eight triples of colour, shape and background are in no training picture.

## Recipe

* Vision: 112 x 112 pixels, patches of 14, {vision_blocks} blocks of {vision_width}; the projector
  stores one more block that changes nothing, since llama.cpp leaves out the last one.
* Language: {blocks} blocks of {width}, {heads} heads, {key_heads} for keys, {vocabulary} tokens.
* Class token first or last, at random: Hugging Face and llama.cpp differ.
* Stage 1, vision tower alone, naming what is in each patch: {vision.steps} steps of {vision.size}
  pictures, rate {vision.rate}. Stage 2, everything, on the answers: {whole.steps} steps of
  {whole.size} pictures with up to four questions each, rate {whole.rate}.
* Muon for the matrices in the blocks (twice the rate), AdamW for the rest; bfloat16; seed {seed}.
* The schedule counts steps, not time: two runs on one machine give the same bytes.
* This run took {minutes:.0f} minutes of training on 2 threads, with {versions}.

## Figures

{figures}

{parity}

{cost}

Per cent right (or, for the bars with "<=", as many as that at most); "-" was not asked there. Each
bar has {asked} fresh pictures{old}, what has no bar {more}. A bar that was missed is marked with
"(!)".

## Files

| file | bytes | sha256 |
| --- | --- | --- |
{files}

## Licence

Apache-2.0, as the package. The data is made by the recipe; no other model had a part in it.
"""


def write(  # noqa: PLR0913 - keywords, each of them a figure of the run
    path: Path,
    folder: Path,
    *,
    plan: Plan,
    figures: list[Figure],
    parity: str,
    minutes: float,
    parameters: int,
) -> None:
    """Write the card of the files in `folder` to `path`."""
    asked = {one.asked for one in figures if one.name == BARS[0].name}
    more = max(one.asked for one in figures if one.name == MORE[0].name)
    text = _CARD.format(
        parameters=parameters / 1e6,
        colours=", ".join(scene.COLOUR_NAMES),
        backgrounds=", ".join(scene.BACKGROUND_NAMES),
        vision_blocks=vision.BLOCKS,
        vision_width=vision.WIDTH,
        blocks=decoder.BLOCKS,
        width=decoder.WIDTH,
        heads=decoder.HEADS,
        key_heads=decoder.KEY_HEADS,
        vocabulary=len(batches.tokenizer().tokens),
        vision=plan.vision,
        whole=plan.whole,
        seed=plan.seed,
        minutes=minutes,
        figures=_table(figures),
        parity=parity,
        asked=max(asked),
        more=more,
        cost=_cost(figures),
        versions=", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
        old=f" ({min(asked)} in the oldest Ollama)" if len(asked) > 1 else "",
        files="\n".join(
            f"| {name} | {size} | {digest} |" for name, size, digest in digests(folder)
        ),
    )
    path.write_text(text, encoding="utf-8")


def _cost(figures: list[Figure]) -> str:
    found = {(one.name, one.place, one.quant): 100 * one.right / one.asked for one in figures}
    bars = {bar.name for bar in BARS if not bar.most}
    costs = [
        share - found[name, at, "int4"]
        for (name, at, quant), share in found.items()
        if name in bars and quant == "f16" and (name, at, "int4") in found
    ]
    mean, most = sum(costs) / len(costs), max(costs)
    return f"int4 costs {mean:.1f} points on average over bars and places, {most:.1f} at most."


def digests(folder: Path) -> list[tuple[str, int, str]]:
    """Return name, size in bytes and sha256 of the three files."""
    return [
        (name, len(data), hashlib.sha256(data).hexdigest())
        for name in FILES
        for data in [(folder / name).read_bytes()]
    ]


def pin(catalog: Path, folder: Path) -> None:
    """Write the sizes and digests of the three files into the catalog's text."""
    text = catalog.read_text(encoding="utf-8")
    for name, size, digest in digests(folder):
        pattern = rf'(file = "{re.escape(name)}"\nsize = )\d+(\nsha256 = ")[0-9a-f]{{64}}'
        text, found = re.subn(pattern, rf"\g<1>{size}\g<2>{digest}", text)
        assert found == 1, f"the catalog pins {name} {found} times"
    catalog.write_text(text, encoding="utf-8")


def _table(figures: list[Figure]) -> str:
    columns = list(dict.fromkeys((one.place, one.quant) for one in figures))
    found = {(one.name, one.place, one.quant): one for one in figures}
    heads = [
        f"{place}, {quant}" if place == EMBEDDED else f"Ollama {place}, {quant}"
        for place, quant in columns
    ]
    lines = [f"| what | bar | {' | '.join(heads)} |", "| --- " * (2 + len(columns)) + "|"]
    limits = {bar.name: f"{'<=' if bar.most else '>='} {bar.limit}" for bar in BARS}
    limits |= {FALSE_ALARMS: "0"} | {bar.name: "" for bar in MORE}
    for name, limit in limits.items():
        cells = [_cell(found.get((name, *column))) for column in columns]
        lines.append(f"| {name} | {limit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if figure.name == FALSE_ALARMS:
        return f"{figure.right} of {figure.asked}{'' if figure.met else ' (!)'}"
    return f"{100 * figure.right / figure.asked:.1f}{'' if figure.met else ' (!)'}"
