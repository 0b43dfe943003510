"""Cost before training, for people: of one design, of a space's random designs, and of what fits a memory."""
