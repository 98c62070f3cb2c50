"""Looking into trained models.

Reading order: capture (a record of each text's attention) -> measures (numbers from records) ->
attribution (which words a prediction hangs on) -> plots (figures) -> explorer (a page of records).
"""
