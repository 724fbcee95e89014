"""What can be set of a model on the command line and in recipes; each model's config says which of it that model has."""

from __future__ import annotations

from dataclasses import dataclass

from cromic_ds.models.common.image_encoder import BATCH_NORM_MODES


@dataclass
class ModelSettings:
    """What is trained, and from which weights."""

    name: str = "cmt"
    """Model: cmt (CroMIC-CMT), vlp (Unified VLP) or vilt (ViLT); the latter two in our interpretation."""
    preset: str = "small"
    """Sizes to start from: tiny, small, paper (the original ones), and for cmt large or xl (1.2 G parameters). The settings
    below override single fields of the preset where they are given; not every model has every one."""
    init_from: str | None = None
    """Start from the weights of this export or run folder, as far as they fit, instead of random ones; its kind and its
    sizes replace `name` and the preset."""
    published: str | None = None
    """Start from weights that others trained, as far as they fit. cmt: a state dict of the published code. vlp: a BertModel
    folder or hub name, or a checkpoint of the published Unified VLP. vilt: a ViltModel folder or hub name."""
    image_encoder: str | None = None
    """Start the ResNet from this ResNetModel folder or hub name (ImageNet weights, say)."""
    mode: str | None = None
    """What the encoder reads: t+v (text and image), v or t."""
    batch_norm: str | None = None
    """Batch norm of the image encoder: frozen (statistics never change; independent of how the batch is split), batch
    (each micro-batch's own, the published way) or sync (each micro-batch's over all ranks)."""
    image_size: int | None = None
    """Side of the square image crops in pixels; for vilt a multiple of `patch_size`."""
    image_norm: str | None = None
    """Image tokens: layer (layer norm, balanced with the text) or l2 (unit length, the published way)."""
    image_positions: bool | None = None
    """Learned positions on the image tokens (the published CroMIC-CMT has none)."""
    embedding_std: float | None = None
    """Standard deviation of the initial token embeddings (vilt: of all embeddings). cmt: 0.02 balanced, 1 published."""
    d_model: int | None = None
    """Width of the transformer."""
    encoder_layers: int | None = None
    """Encoder layers."""
    decoder_layers: int | None = None
    """Decoder layers."""
    n_heads: int | None = None
    """Attention heads."""
    ffn: int | None = None
    """Inner width of the feed-forward blocks."""
    dropout: float | None = None
    """Dropout probability (CroMIC-CMT was published with 0, the other two with 0.1)."""
    label_smoothing: float | None = None
    """Share of each target's probability spread over all tokens, in training only (0 as published)."""
    freeze_image_encoder: bool = False
    """Leave the image encoder as it is, its batch norm statistics included."""
    mask_rate: float | None = None
    """Share that is masked and predicted, vlp: of a comment's tokens (at least one); vilt: of a post's words."""
    objective: str | None = None
    """vlp: masked (masked comment tokens) or causal (every comment token from those before it)."""
    bidirectional_rate: float | None = None
    """vlp: share of the comments that are read in both directions; the others from left to right."""
    mask_token_rate: float | None = None
    """vlp: share of the tokens to predict that become [MASK]."""
    random_token_rate: float | None = None
    """vlp: share of the tokens to predict that become a random one; the rest stay."""
    image_ffn: int | None = None
    """vlp: inner width of the MLP on the image grid."""
    image_layer_norm: bool | None = None
    """vlp: layer norm on the image tokens before their positions are added (the published Unified VLP has none)."""
    initializer_range: float | None = None
    """vlp: standard deviation of the initial weights."""
    layer_norm_eps: float | None = None
    """vlp: what layer norms add to the variance."""
    max_positions: int | None = None
    """vlp: learned positions, for image, post and comment together."""
    type_vocab_size: int | None = None
    """vlp: learned segments."""
    segments: dict[str, list[int]] | None = None
    """vlp: segments of image, post and comment, for `seq2seq` and for `bidirectional`."""
    answer_segments: str | None = None
    """vlp: which of these a post has whose answer is classified."""
    decoder: str | None = None
    """vilt: what generates, cmt (CroMIC-CMT's decoder) or prefix (the encoder itself under a prefix mask)."""
    decoder_heads: int | None = None
    """vilt: attention heads of the cmt decoder."""
    decoder_ffn: int | None = None
    """vilt: inner width of the cmt decoder's feed-forward blocks."""
    patch_size: int | None = None
    """vilt: side of the image patches in pixels."""
    position_grid: int | None = None
    """vilt: patches a side that positions are learned for; others are interpolated."""
    text_positions: int | None = None
    """vilt: learned positions of a text."""
    mlm_weight: float | None = None
    """vilt: weight of masked language modeling beside the comments; 0 = without, the default in fine-tuning."""
    itm_weight: float | None = None
    """vilt: weight of image-text matching beside the comments; 0 = without, the default in fine-tuning."""
    swap_rate: float | None = None
    """vilt: share of the posts that image-text matching also sees under another post's image."""

    def overrides(self) -> dict:
        chosen = {k: v for k, v in vars(self).items() if v is not None}
        return {k: v for k, v in chosen.items() if k not in NO_OVERRIDES}


# Not fields of a config.
NO_OVERRIDES = ("name", "preset", "init_from", "published", "image_encoder", "freeze_image_encoder")
CHOICES = {
    "mode": ("t+v", "v", "t"),
    "batch_norm": BATCH_NORM_MODES,
    "image_norm": ("layer", "l2"),
    "objective": ("masked", "causal"),
    "answer_segments": ("seq2seq", "bidirectional"),
    "decoder": ("cmt", "prefix"),
}
AT_LEAST_ONE = (
    *("d_model", "n_heads", "ffn", "encoder_layers", "decoder_layers", "image_ffn", "max_positions", "type_vocab_size"),
    *("decoder_heads", "decoder_ffn", "patch_size", "position_grid", "text_positions"),
)
BELOW_ONE = ("dropout", "label_smoothing")
UP_TO_ONE = ("mask_rate", "bidirectional_rate", "mask_token_rate", "random_token_rate", "swap_rate")
