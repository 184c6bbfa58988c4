"""Many runs: plan, sweep, launch, tune, forecast, publish, and what the scripts share; may import all rooms."""
