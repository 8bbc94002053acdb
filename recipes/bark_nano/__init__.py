"""How bark-nano is made, from teachers to weights. Each module is a command; README.md tells their order."""
