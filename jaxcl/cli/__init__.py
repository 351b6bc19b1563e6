"""The command `jaxcl`: words to calls. Nothing imports it, and it may import every other room."""
