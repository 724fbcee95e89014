"""CroMIC-CMT the published way: the baseline of `train_step.py` and `decode.py`. The product does not use it.

Sequence-first torch transformers in fp32; posts padded to 40 tokens and comments to 25; every comment has its own copy of
its post's memory; NCHW convolutions; Adam and clipping at 1.0; decoding runs the whole prefix again for each new token,
and beam search one post at a time. Parameter names are the published ones, so that `load_cmt_state_dict` carries the weights
over and both sides of a benchmark compute the same function.

Legend: P posts, N comments, L post tokens, K image tokens, S = L + K, T comment tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cromic_ds.batch import Batch
from cromic_ds.models.common.image_encoder import normalize_imagenet

POST_TOKENS, COMMENT_TOKENS, CAPTION_TOKENS = 40, 25, 72
VOCABULARY, WIDTH, HEADS, FFN, LAYERS = 21128, 768, 8, 1024, 6
CLS = 101


class Bottleneck(nn.Module):
    """torchvision's, with the stride on the 3×3 convolution."""

    def __init__(self, inputs: int, inner: int, stride: int):
        super().__init__()
        outputs = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


def resnet50() -> nn.Sequential:
    """Return a ResNet-50 without pool and classifier."""
    stages, inputs = [], 64
    for depth, inner, stride in zip((3, 4, 6, 3), (64, 128, 256, 512), (1, 2, 2, 2)):
        blocks = [Bottleneck(inputs, inner, stride)]
        inputs = 4 * inner
        stages.append(nn.Sequential(*blocks, *(Bottleneck(inputs, inner, 1) for _ in range(depth - 1))))
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages)


class PublishedImageEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet50()
        self.conv2d = nn.Conv2d(2048, WIDTH, 1)
        self.batch_norm = nn.BatchNorm1d(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """(P, 3, 224, 224) normalized -> (P, 36, D)"""
        grid = F.max_pool2d(self.conv2d(self.backbone(images)), 2, 1).flatten(2)
        return F.normalize(self.batch_norm(grid).transpose(1, 2), dim=-1)


class TokenEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        positions = torch.arange(CAPTION_TOKENS)[:, None] * torch.exp(
            torch.arange(0, WIDTH, 2) * (-math.log(1e4) / WIDTH)
        )
        table = torch.stack([positions.sin(), positions.cos()], dim=-1).flatten(1)
        self.register_buffer("positions", table[:, None], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(L, P) -> (L, P, D)"""
        return self.embedding(ids) * math.sqrt(WIDTH) + self.positions[: len(ids)]


class Published(nn.Module):
    """The published CroMIC-CMT, 119,026,120 parameters."""

    def __init__(self):
        super().__init__()
        sizes = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": FFN, "dropout": 0.0}
        self.token_embed = TokenEmbedding()
        self.token_type_embed = nn.Embedding(2, WIDTH)
        self.image_encoder = PublishedImageEncoder()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**sizes), LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), LAYERS, nn.LayerNorm(WIDTH))
        self.generator = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, posts: Tensor | None, images: Tensor) -> tuple[Tensor, Tensor]:
        """(P, L), (P, 3, 224, 224) -> memory (S, P, D) and its padding (P, S), True where there is no token.

        posts: None for images alone.
        """
        if posts is None:
            image = self.image_encoder(images).transpose(0, 1) + self.token_type_embed.weight[1]
            padding = torch.zeros(image.shape[1::-1], dtype=torch.bool)
            return self.encoder(image, src_key_padding_mask=padding), padding
        text = self.token_embed(posts.T) + self.token_type_embed.weight[0]
        image = self.image_encoder(images).transpose(0, 1) + self.token_type_embed.weight[1]
        padding = torch.cat([posts == 0, torch.zeros(image.shape[1::-1], dtype=torch.bool)], dim=1)
        return self.encoder(torch.cat([text, image]), src_key_padding_mask=padding), padding

    def decode(self, ids: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """(N, T), (S, N, D), (N, S) -> hidden states (T, N, D)"""
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        return self.decoder(
            self.token_embed(ids.T),
            memory,
            tgt_mask=causal,
            tgt_key_padding_mask=ids == 0,
            memory_key_padding_mask=padding,
        )

    def forward(self, posts: Tensor | None, images: Tensor, comments: Tensor, owner: Tensor) -> Tensor:
        """Mean cross-entropy per target token. comments: (N, T); owner: (N,) the post of each comment."""
        memory, padding = self.encode(posts, images)
        hidden = self.decode(comments[:, :-1], memory[:, owner], padding[owner])
        return F.cross_entropy(self.generator(hidden).flatten(0, 1), comments[:, 1:].T.flatten(), ignore_index=0)

    @torch.no_grad()
    def greedy(self, posts: Tensor, images: Tensor, steps: int) -> Tensor:
        """Generate `steps` tokens for each post, none of them [SEP]: (P, 1 + steps), with [CLS] in front."""
        memory, padding = self.encode(posts, images)
        ids = torch.full((len(posts), 1), CLS)
        for _ in range(steps):
            logits = self.generator(self.decode(ids, memory, padding)[-1])
            ids = torch.cat([ids, forced(logits).argmax(1, keepdim=True)], dim=1)
        return ids

    @torch.no_grad()
    def beam(self, posts: Tensor, images: Tensor, steps: int, beams: int) -> Tensor:
        """Return the best of `beams` hypotheses for each post, one post after the other: (P, 1 + steps)"""
        return torch.cat([self._beam(posts[i : i + 1], images[i : i + 1], steps, beams) for i in range(len(posts))])

    def _beam(self, post: Tensor, image: Tensor, steps: int, beams: int) -> Tensor:
        memory, padding = self.encode(post, image)
        memory, padding = memory.expand(-1, beams, -1).contiguous(), padding.expand(beams, -1)
        ids, scores = torch.full((beams, 1), CLS), torch.tensor([0.0] + [-1e9] * (beams - 1))
        for _ in range(steps):
            logits = self.generator(self.decode(ids, memory, padding)[-1])
            total = scores[:, None] + forced(logits.log_softmax(-1))
            scores, best = total.flatten().topk(beams)
            ids = torch.cat([ids[best // VOCABULARY], (best % VOCABULARY)[:, None]], dim=1)
        return ids[:1]


def forced(scores: Tensor) -> Tensor:
    """Forbid the end of the text, so that every text has the same length."""
    scores[:, 102] = -math.inf
    return scores


def train_step(model: Published, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...]) -> float:
    optimizer.zero_grad()
    loss = model(*inputs)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def padded_inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a batch as the published loader makes it: posts (P, 40), images (P, 3, H, W) in fp32, comments (N, 25), owner."""
    posts = F.pad(batch.post_ids, (0, POST_TOKENS - batch.post_ids.shape[1]))
    comments = F.pad(batch.comment_ids, (0, COMMENT_TOKENS - batch.comment_ids.shape[1]))
    return posts, normalize_imagenet(batch.images).contiguous(), comments, batch.owner
