"""Looking into trained models.

Reading order: recording (masks and maps of one pass) -> capture (a record of each text's attention) ->
measures (numbers from records) -> attribution (which words a prediction hangs on) -> plots (figures) ->
explorer (a page of records).
"""
