"""The core: adapters, their maths, files and training. Knows no host and no key format."""
