"""Models and predictions of other programs, read and written."""
