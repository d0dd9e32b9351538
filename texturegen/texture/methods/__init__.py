"""The synthesis methods, one module each; the registry is `texturegen.texture.METHODS`.

A method is a pure function of (patches, size, seed) and of its settings, which are keyword-only parameters.
"""
