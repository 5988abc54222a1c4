"""Conversations to fine-tune on: the files people have, and generators."""
