"""The suites of the libraries whose citizens these classes are. Their sources are fetched by `make test-peers`."""
