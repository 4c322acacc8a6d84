"""Effects that bend, fold and refract the picture."""
