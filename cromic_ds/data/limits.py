"""Default lengths of pretraining texts. Downstream tasks have limits of their own, in their `Task`."""

POST_TOKENS = 40
"""Longest post in tokens, [CLS] and [SEP] included."""

COMMENT_TOKENS = 25
"""Longest comment in tokens, [CLS] and [SEP] included."""
