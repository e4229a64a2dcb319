"""Numbers: one mask pair, one fold, the cross-validation."""
