"""How the pocket world's weights were made: each module is one command; `base` and `few_step` continue from
their last checkpoint.
"""
