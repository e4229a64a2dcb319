"""What came out, for people: one page, and a table of volumes."""
