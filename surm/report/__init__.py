"""Records to statistics, verdicts, tables, figures and one page; may import `shared`, `records` and `methods.names`."""
