"""Who answers: an Ollama daemon, a llama-server, or llama.cpp in this process."""
