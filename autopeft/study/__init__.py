"""The record of a study: what happened, kept so that nothing complete is lost, and read again by everything else."""
