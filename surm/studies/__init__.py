"""Questions without a training run, and what training did to weights; may import `shared` to `training`."""
