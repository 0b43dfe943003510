"""Where segments run: in this process, or simulated under a virtual clock."""
