"""Triton model repositories from model packages: configs, Python-backend models, launch commands."""
