"""One run: find or claim it, train, evaluate, checkpoint, track, record; may import the rooms from `shared` to `config`, and
never the report.
"""
