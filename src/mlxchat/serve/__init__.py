"""An OpenAI-compatible server: the model's thread, requests, answers and access control."""
