"""HTTP in front of `service.rank`: bodies, answers, documents. Nothing here ranks."""
