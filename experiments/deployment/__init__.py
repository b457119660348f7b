"""Real machines: the scripts of a site, and a rehearsal of all of it on loopback."""
