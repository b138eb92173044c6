"""Every key of a scenario: the source of docs/reference.md and of the JSON schema, held against the reader by tests."""
