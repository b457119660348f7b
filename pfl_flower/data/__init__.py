"""Where the points come from that users hold."""
