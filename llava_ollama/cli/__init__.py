"""The command line: parsing, one call into the library, one result to the output.

Only here is Click known, does anything print, and does the program exit. Commands are loaded when
they are called, so that `--help` costs no more than Click.
"""

from __future__ import annotations

try:
    import click

    from llava_ollama import __version__
    from llava_ollama.cli.frame import LazyGroup, global_options
except KeyboardInterrupt:  # a person who thinks better of it at once sees no traceback
    raise SystemExit(130) from None

COMMANDS = {
    "install": "install:install",
    "ask": "ask:ask",
    "run": "ask:run",
    "look": "look:look",
    "compare": "compare:compare",
    "batch": "batch:batch",
    "status": "status:status",
    "export": "export:export",
    "gallery": "gallery:gallery",
    "list": "inventory:list_models",
    "show": "inventory:show",
    "remove": "inventory:remove",
    "verify": "verify:verify",
    "repair": "verify:repair",
    "download": "install:download",
    "inspect": "inspect:inspect",
    "render": "files:render",
    "mend": "files:mend",
    "doctor": "doctor:doctor",
    "demo": "demo:demo",
    "completion": "completion:completion",
}
"""Command → `module:function` in this package."""


EXAMPLES = """\b
Examples:
  llava-ollama demo
  llava-ollama install --quant int4
  llava-ollama ask photo.jpg "What is in it?"
"""


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="llava-ollama")
@global_options
def main() -> None:
    """Install LLaVA-Llama-3 vision models into Ollama, and ask them about pictures."""
