"""Automated search for parameter-efficient fine-tuning configurations."""
