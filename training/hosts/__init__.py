"""Who lends the model: a host turns (noisy latent, sigma, text, source) into a velocity with its own runtime.

On diffusers `qwen` and `pocket`, in ComfyUI `comfy`; `comfy_pocket` loads the pocket's base there.
"""
