"""One page about all studies."""
