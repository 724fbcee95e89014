"""The columns of the published table."""

TASK_NAMES = {
    "muge": "MUGE",
    "aic_icc": "AIC-ICC",
    "flickr30k_cn": "Flickr30k-CN",
    "fmiqa": "FM-IQA",
    "vqa2": "VQA v2.0",
}
CAPTION_SCORES = {"cider": "C", "bleu_4": "B@4", "rouge_l": "R"}
SCORES = {  # the published columns; FM-IQA's there is the human PassRate, which no automatic score is
    **dict.fromkeys(("muge", "aic_icc", "flickr30k_cn"), CAPTION_SCORES),
    "fmiqa": {"cider": "C", "bleu_4": "B@4", "exact_match": "EM"},
    "vqa2": {"accuracy": "Acc"},
}
