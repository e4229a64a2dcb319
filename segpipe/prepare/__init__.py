"""From raw cases to the plan and the preprocessed cases."""
