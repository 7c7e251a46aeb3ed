"""`python -m llava_ollama`."""

from llava_ollama.cli import main

main(prog_name="llava-ollama")
