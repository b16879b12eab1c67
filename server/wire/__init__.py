"""JSON to contracts and back. Nothing outside this package knows OpenAI's shapes."""
