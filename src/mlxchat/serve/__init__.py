"""A server that speaks OpenAI's API: the model's thread, requests and answers, what is let in."""
