"""The gateway: a ranking request in, a ranked list out, inside its deadline, always."""
