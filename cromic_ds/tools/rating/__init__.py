"""The human Turing test of FM-IQA: people judge whether a person may have written an answer, without knowing who wrote it.

`rate` is the command, `sheet` selects and orders the answers, `judgments` is the SQLite file of the sheet and all judgments,
`server` is the local web page, and `report` and `chart` show the results.
"""
