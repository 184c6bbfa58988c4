"""What happened in a run, safe on disk: records, their storage, and claims on runs; may import `shared` alone."""
