"""The tiny LLaVA that ships with the package, and the pictures that it knows."""
