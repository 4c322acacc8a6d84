"""The pocket world: a trained Qwen-Image-Edit at pocket size, its data, effects and shipped weights."""
