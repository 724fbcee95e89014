"""The human Turing test of FM-IQA: people judge, blind to who wrote it, whether an answer may be a person's.

`rate` is the command, `sheet` what is shown in which order, `judgments` the SQLite file that holds the sheet and every
judgment, `server` the local web page, `report` the numbers and the picture.
"""
