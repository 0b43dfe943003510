"""What a study found: the front and its comparisons, tables, plots and the report. Sits on top of the search arm."""
