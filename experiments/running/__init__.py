"""Running presets: options, engines, progress."""
