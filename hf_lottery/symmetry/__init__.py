"""Which axes of a model may be permuted without changing its function."""
