"""Convert a checkpoint of the published CroMIC-CMT code to an export."""

from pathlib import Path

from cromic_ds.data.limits import COMMENT_TOKENS, POST_TOKENS
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.inference.exports import write_export
from cromic_ds.inference.settings import ImportSettings


def import_published(settings: ImportSettings) -> None:
    """Run `cromic-ds import-published`: write the export, and list every name that did not fit.

    Raises UserError if the file holds no state dict of that code, weights are missing, or the vocabulary has another size.
    """
    from cromic_ds.models.cmt.config import CMTConfig
    from cromic_ds.models.cmt.weights import load_cmt_state_dict
    from cromic_ds.models.common.weights import read_state_dict
    from cromic_ds.models.registry import build_config, build_model, vocabulary_of

    out = Path(settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: name another one with --out")
    weights = read_state_dict(Path(settings.state_dict))
    names = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if "token_embed.embedding.weight" not in names:
        raise UserError(
            f"{settings.state_dict}: no published CroMIC-CMT checkpoint (no token_embed.embedding.weight among "
            f"{len(names)} names, such as {', '.join(list(names)[:2])})"
        )
    tokenizer = load_tokenizer(settings.tokenizer)
    vocab_size = names["token_embed.embedding.weight"].shape[0]
    n_answers = names["vqa_classifier.3.weight"].shape[0] if "vqa_classifier.3.weight" in names else 0
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"{settings.tokenizer} has {len(tokenizer)} tokens and the checkpoint {vocab_size}: name the tokenizer it was "
            "trained with (bert-base-chinese has 21128)"
        )
    vocabulary = vocabulary_of(tokenizer, CMTConfig)
    model = build_model(build_config("cmt", "paper", mode=settings.mode, n_answers=n_answers, **vocabulary))
    report = load_cmt_state_dict(model, weights)
    print(report)
    if report.missing or report.mismatched:
        raise UserError(f"{settings.state_dict}: incomplete (listed above); nothing was written")
    fingerprint = tokenizer_fingerprint(tokenizer)
    facts = {"max_post_tokens": POST_TOKENS, "max_comment_tokens": COMMENT_TOKENS, "tokenizer_fingerprint": fingerprint}
    write_export(model, tokenizer, facts, out)
    print(f"written to {out}")
