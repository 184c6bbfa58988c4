"""What a run is asked: schemas, checks, composing `conf/`, learning rates, signatures; may import the rooms from `shared` to
`methods`.
"""
