"""Teachers: models that answer about a text and say how sure they were of every token."""
