"""Where training data comes from: logs, an importer of one's own tables, a simulator."""
