"""Many runs: plan, sweep, launch, tune, forecast, publish, and the commands of `scripts/`; may import every other room."""
