"""Settings of every test."""

from hypothesis import settings

# Speed is measured in benchmarks, never in timed tests.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
