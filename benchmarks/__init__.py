"""What a training step costs with each kind of update, in time and in memory: ratios, measured side by side."""
