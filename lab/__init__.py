"""What darwinlm is measured with: other methods, files of every type, benchmarks, pictures of results."""
