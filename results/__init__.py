"""Measured runs, one JSON each, and what is drawn from them; installed as `asa_results`.

`experiments` makes the runs, `tables` reads them for lessons and README, `readme` writes README's tables.
"""
