"""What results are worth: a classifier of true effects, its thresholds, and tables with intervals."""
