"""The search arm: proposing designs, judging them on rungs, and keeping the study. The only gate to optuna."""
