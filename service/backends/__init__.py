"""Backends: what scores a packed batch. Each implements `service.ranking.Backend`."""
