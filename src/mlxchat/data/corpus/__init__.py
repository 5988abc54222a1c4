"""The built-in corpus: a grammar's stories, facts and questions."""
