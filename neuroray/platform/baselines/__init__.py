"""What a model must beat: predictors on functional connectivity or coarse volumes, on the same splits and metrics."""
