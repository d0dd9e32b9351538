"""One module per published synthesis method; the registry is `METHODS` in `texturegen.texture`."""
