"""Who lends the model: a host turns (noisy latent, sigma, text, source) into a velocity with its own
runtime.
"""
