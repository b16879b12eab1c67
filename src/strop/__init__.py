"""strop: an inference and generation server that spends extra compute at request time where it pays."""
