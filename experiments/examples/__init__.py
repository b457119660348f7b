"""Short scripts that use the library as its users would, each with members of its own."""
