"""What single families need in GGUF files, by the names in their descriptions: `latent.split_heads`.

A transform gets a block's tensor in float32 and the configuration, and returns it rearranged, or several by name. A
key's value follows from a `Reshaper` and a `Layout`.
"""
