"""Chinese image captioning: AIC-ICC, Flickr30k-CN and MUGE."""

from __future__ import annotations

from cromic_ds.tasks.base import GeneratedText
from cromic_ds.tasks.predictions import Form, image_id


def captioning(name: str, tokenisation: str, form: Form) -> GeneratedText:
    return GeneratedText(
        name=name,
        kind="caption",
        reads_text=False,
        tokenisation=tokenisation,
        best_metric="cider",
        higher_is_better=True,
        max_new_tokens=72,
        form=form,
    )


# Scored on jieba's words without "。"; the server takes a list of {"image_id" without extension, "caption"}.
AIC_ICC = captioning("aic_icc", "jieba", Form("image_id", "caption", image_id, lines=False))

# Scored on characters here; publications also use words (--tokenisation jieba). There is no server: the form is ours.
FLICKR30K_CN = captioning("flickr30k_cn", "char", Form("image_id", "caption", image_id, lines=True))

# Scored on single characters, letters and digits grouped; the server takes lines of {"image_id", "text"}.
MUGE = captioning("muge", "char", Form("image_id", "text", image_id, lines=True))
