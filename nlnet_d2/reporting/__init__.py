"""What a training did and what a model looks at, as pages and pictures."""
