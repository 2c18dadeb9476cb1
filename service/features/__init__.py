"""The feature store: what Redis holds of users and items, and how it is read and written."""
