"""From checkpoint to engine: export, model packages, engine kinds, verification, Triton."""
