"""Backends: what scores a packed batch. Each implements `service.rank.Backend`."""
