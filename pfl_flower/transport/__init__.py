"""What carries messages between server and nodes: all that knows Flower, but for the two apps."""
