"""What mlxchat is measured against, written here from the formulas."""
