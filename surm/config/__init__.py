"""What a run is asked: schemas, checks, composing, rates, signatures; may import `shared` to `records`."""
