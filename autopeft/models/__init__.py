"""All that touches a transformer: loading, roles, techniques, attaching, quantization, artifacts."""
