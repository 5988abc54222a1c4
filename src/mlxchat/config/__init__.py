"""Settings, presets and recipes. Pure: no arrays, no files."""
