"""Values that both arms share: no torch, no optuna, no ray, nothing that does work."""
