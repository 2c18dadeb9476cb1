"""A package's engines behind Triton: model repository, Python-backend model, launch command."""
