"""What a person may set: settings models, presets and recipes, without arrays or files."""
