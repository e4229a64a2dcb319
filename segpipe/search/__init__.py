"""Hyper-parameter search: trainings with other settings, by any number of jobs, and which settings were best."""
