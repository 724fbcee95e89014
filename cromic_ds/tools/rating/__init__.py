"""The human Turing test of FM-IQA: people judge whether a person may have written an answer, without knowing who wrote it."""
