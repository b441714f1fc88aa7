"""Statistics: intervals, paired tests, detection."""
