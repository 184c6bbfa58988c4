"""The paper's questions that need no training run, and what training did to weights; may import the rooms from `shared` to
`training`.
"""
