"""Looking into trained models.

Reading order: recording (masks and maps of one pass) -> texts (what a head reads, in batches) -> capture (a
record of each text's attention) -> measures (numbers from records) -> attribution (which words a prediction
hangs on) -> plots (figures) -> explorer (a page of records).
"""
