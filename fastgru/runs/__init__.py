"""Training from a file: what a CONFIG.toml says, the data it names, and the commands ``train`` and ``evaluate``."""
