"""What a user does with a broadcast: honestly, or strategically."""
