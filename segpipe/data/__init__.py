"""Reading, checking and splitting datasets; the generated phantoms."""
