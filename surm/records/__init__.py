"""What happened in a run, safe on disk: records, storage, claims; may import `shared` alone."""
