"""How each method makes its adapter; `gapinit.config.configuration.methods` lists them."""
