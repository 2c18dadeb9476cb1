"""The MTGR model, its data and its training. Imports nothing else of this project."""
