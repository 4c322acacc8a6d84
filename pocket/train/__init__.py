"""How the pocket world's weights were made: each module is one command, each continues from its last
checkpoint.
"""
