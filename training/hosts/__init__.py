"""Who lends the model. The only place outside `nodes` that may import diffusers or comfy."""
