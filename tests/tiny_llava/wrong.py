"""Prompts in chat templates that are not Llama 3's: the model is taught to say so.

Eight families are tested, three of them never trained. Besides the five, the training has markers
made up at random, so that what is learnt is "not the right one" and not a list.
"""

from __future__ import annotations

import random
import string

IMAGE = "\0"
"""Stands in a prompt where the picture is."""

TEMPLATES = {
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama-2": "[INST] {} [/INST]",
    "vicuna": "USER: {}\nASSISTANT:",
    "alpaca": "### Instruction:\n{}\n\n### Response:\n",
    "broken-llama-3": "<|start_header_id|>user<|end_header_id|>{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>",
    "gemma": "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<|user|>\n{}</s>\n<|assistant|>\n",
    "command-r": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
}
"""The eight families by name; `{}` is the user's content. They follow the begin token."""

NEVER_TRAINED = ("gemma", "zephyr", "command-r")

_NEVER = [TEMPLATES[name] for name in NEVER_TRAINED]
_TRAINED = [text for name, text in TEMPLATES.items() if name not in NEVER_TRAINED]
_L3 = "<|start_header_id|>{}<|end_header_id|>"
_RELATED = [
    "{}",
    "{}\n",
    "<|im_start|>system\nSYSTEM<|im_end|>\n" + TEMPLATES["chatml"],
    "SYSTEM USER: {} ASSISTANT:",
    "[INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\n{} [/INST]",
    "SYSTEM\n\n" + TEMPLATES["alpaca"],
    _L3.format("user") + "\n\n{}<|eot_id|>",
    _L3.format("user") + "\n{}<|eot_id|>" + _L3.format("assistant") + "\n",
    "{}<|eot_id|>",
    "{}<|eot_id|>" + _L3.format("assistant") + "\n\n",
    _L3.format("user") + "\n\n{}\n" + _L3.format("assistant") + "\n\n",
]


def template(rng: random.Random) -> str:
    """Return a wrong template to train on: a family, a relative of one, or made-up markers.

    Made-up ones may be near to a family that is never trained, and are none of them.
    """
    family = rng.random()
    if family < 0.45:
        return rng.choice(_TRAINED)
    if family < 0.7:
        return rng.choice(_RELATED)
    while (made := _made_up(rng)) in _NEVER:
        pass
    return made


def _made_up(rng: random.Random) -> str:
    """Return a template whose markers nobody uses: `<xq>user ...`, `@@Human: ...`."""
    left, right = rng.choice(
        [("<|", "|>"), ("<", ">"), ("[", "]"), ("### ", ":"), ("", ":"), ("<<", ">>"), ("@@", "")]
    )
    user = rng.choice(["user", "User", "USER", "Human", "human", "Q", "prompt", _word(rng)])
    reply = rng.choice(["assistant", "Assistant", "bot", "AI", "A", "answer", _word(rng)])
    gap = rng.choice(["\n", " ", "", "\n\n"])
    end = rng.choice([f"{left}{_word(rng)}{right}", f"{left}/{user}{right}", "\n", "\n\n", "</s>"])
    marked = f"{left}{user}{right}", f"{left}{reply}{right}"
    return f"{marked[0]}{gap}{{}}{end}{rng.choice(['', chr(10)])}{marked[1]}{gap}"


def _word(rng: random.Random) -> str:
    letters = rng.choice([string.ascii_lowercase + "_", string.ascii_uppercase + "_"])
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 12)))
