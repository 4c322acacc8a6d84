"""The method: flow mathematics, roles on one shared base, teacher bank, losses, rollouts, trainer.

Knows neither ComfyUI nor diffusers; `hosts` lends it a model from either.
"""
