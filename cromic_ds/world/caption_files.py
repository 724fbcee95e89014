"""The sample world as AIC-ICC, Flickr30k-CN and MUGE: images with captions."""

import base64
import hashlib
from typing import Any

from cromic_ds.data.order import order_key, permute
from cromic_ds.world import language
from cromic_ds.world.scenes import scene_to_json
from cromic_ds.world.task_files import TaskFiles, WorldImage

AIC_FOLDERS = {
    "train": "caption_train_images_20170902",
    "val": "caption_validation_images_20170910",
    "test": "caption_test_a_images_20180103",
}
AIC_ANNOTATIONS = {
    "train": "caption_train_annotations_20170902.json",
    "val": "caption_validation_annotations_20170910.json",
}
FLICKR_FOLDERS = {"train": "flickr30kzhbbosontrain", "val": "flickr30kzhbbosonval", "test": "flickr30kzhmbosontest"}
MUGE_FILES = {"train": "IC_train", "val": "IC_valid", "test": "IC_test"}

FLICKR_IDS = 10**10  # ids of Flickr have up to ten digits
FLICKR_KEY = 2  # different from those of other orders of the same seed

# Tags by BosonNLP for the words and punctuation marks of captions: noun, direction, verb, preposition, …
TAGS = {
    "n": (*language.COLOR_WORDS, *language.SHAPE_WORDS, "图", "图形", "一行"),
    "f": ("左边", "中间", "右边", "左", "右", "里", "最后"),
    "v": ("到", "画", "排", "成"),
    "vshi": ("是",),
    "vyou": ("有",),
    "p": ("在", "从"),
    "c": ("和",),
    "m": ("一个", "三个"),
    "r": ("这里",),
    "d": ("先", "再"),
    "uzhe": ("着",),
    "ude": ("的",),
    "wd": ("，",),
    "wn": ("、",),
    "wm": ("：",),
}
TAG_OF = {word: tag for tag, words in TAGS.items() for word in words}
MARKS = frozenset(word for tag in ("wd", "wn", "wm") for word in TAGS[tag])


class AicIccFiles(TaskFiles):
    """Two annotation files and three folders of images; five captions per image, none in the test split."""

    number = 3

    def add(self, image: WorldImage) -> None:
        id = hash_id(self.seed, self.number, image, 20)
        self.write_image(f"{AIC_FOLDERS[image.split]}/{id}.jpg", image)
        captions = language.write_captions(image.scene, self.random(image), 5)
        if image.split in AIC_ANNOTATIONS:
            url = f"sample://{self.seed}/{image.index:06d}.jpg"
            item = {"url": url, "image_id": f"{id}.jpg", "caption": list(map(language.without_spaces, captions))}
            self.json.setdefault(AIC_ANNOTATIONS[image.split], []).append(item)
        self.ground(id, caption_extras(image))


class Flickr30kCnFiles(TaskFiles):
    """Folders of segmented captions, five per image, and one folder with all images.

    The captions translated by machine, `zhb`, have two spaces in place of each punctuation mark. Those translated by people,
    `zhm`, have a tag after every word and mark.
    """

    number = 4

    def add(self, image: WorldImage) -> None:
        id = str(permute(image.index, FLICKR_IDS, order_key(self.seed, FLICKR_KEY)))
        self.write_image(f"flickr30k-images/{id}.jpg", image)
        name = FLICKR_FOLDERS[image.split]
        self.write(f"{name}/ImageSets/{name}.txt", id)
        segmented, language_tag = (tagged, "zhm") if image.split == "test" else (without_marks, "zhb")
        for k, caption in enumerate(language.write_captions(image.scene, self.random(image), 5)):
            self.write(f"{name}/TextData/seg.{name}.caption.txt", f"{id}#{language_tag}#{k} {segmented(caption)}")
        self.ground(id, caption_extras(image))


class MugeFiles(TaskFiles):
    """For each split a TSV of images in URL-safe base64 and a file with ten captions per image, in the test split ids only."""

    number = 5

    def add(self, image: WorldImage) -> None:
        id = hash_id(self.seed, self.number, image, 16)
        name = MUGE_FILES[image.split]
        self.write(f"{name}.tsv", f"{id}\t{base64.urlsafe_b64encode(image.jpeg).decode()}")
        item: dict[str, Any] = {"image_id": id}
        if image.split != "test":
            captions = language.write_captions(image.scene, self.random(image), 10)
            item["text"] = list(map(language.without_spaces, captions))
        self.write_item(f"{name}.jsonl", item)
        self.ground(id, caption_extras(image))


def hash_id(seed: int, number: int, image: WorldImage, size: int) -> str:
    """Return an id that looks like a hash of the image: `size` bytes in hexadecimal."""
    return hashlib.blake2b(f"{seed}:{number}:{image.index}".encode(), digest_size=size).hexdigest()


def caption_extras(image: WorldImage) -> dict[str, Any]:
    """Return what decides whether a caption is right: it must name the three things of the scene and no other."""
    return {
        "kind": "caption",
        "answer": [thing.color + thing.shape for thing in image.scene],
        "alternatives": list(language.COMPOUNDS),
        "scene": scene_to_json(image.scene),
    }


def without_marks(caption: str) -> str:
    """Return a segmented caption without its punctuation marks, each of which leaves two spaces."""
    return " ".join("" if word in MARKS else word for word in caption.split())


def tagged(caption: str) -> str:
    """Return a segmented caption with each word as `word:tag`."""
    return " ".join(f"{word}:{TAG_OF[word]}" for word in caption.split())
