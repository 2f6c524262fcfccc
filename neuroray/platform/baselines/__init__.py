"""What a model of brain runs must beat: predictors on functional connectivity, on the same splits and metrics."""
