"""Folders, configurations and weights that do not fit are refused before a run starts."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViltModel

from cromic_ds.data.loader import DataSettings
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.store import answers_fingerprint
from cromic_ds.data.tokenizer import train_tokenizer
from cromic_ds.engine.config import find_ds_config
from cromic_ds.errors import UserError
from cromic_ds.inference.exports import write_export
from cromic_ds.models.registry import MODELS
from cromic_ds.models.settings import ModelSettings
from cromic_ds.settings import check_settings
from cromic_ds.tasks import TASKS
from cromic_ds.tasks.base import check_task
from cromic_ds.training.finetune import FinetuneSettings
from cromic_ds.training.pretrain import PretrainSettings
from cromic_ds.training.startup import (
    FIXED,
    calibrate_batch_norm,
    load_image_encoder,
    make_model,
    open_folder,
    pick,
    settings_dict,
)


@pytest.fixture
def settings() -> dict:
    return settings_dict(PretrainSettings())


def changed(settings: dict, name: str, value) -> dict:
    new = copy.deepcopy(settings)
    *sections, last = name.split(".")
    pick(new, ".".join(sections))[last] = value
    return new


# ---- the run folder


def test_a_new_folder_gets_the_settings(tmp_path, settings):
    open_folder(tmp_path / "a" / "run", settings)
    assert yaml.safe_load((tmp_path / "a" / "run" / "config.yaml").read_text()) == settings
    (tmp_path / "empty").mkdir()
    open_folder(tmp_path / "empty", settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.preset", "tiny", "model.preset = 'small', and this command says 'tiny'"),
        ("model.dropout", 0.1, "model.dropout = None, and this command says 0.1"),
        ("loop.global_batch", 8, "loop.global_batch = 64, and this command says 8"),
        ("data.comments_per_post", 3, "data.comments_per_post = 10, and this command says 3"),
    ],
)
def test_a_resume_with_other_fixed_settings_is_refused(tmp_path, settings, name, value, message):
    open_folder(tmp_path / "run", settings)
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path / "run", changed(settings, name, value))
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_resume_may_change_the_rest(tmp_path, settings):
    open_folder(tmp_path / "run", settings)
    longer = changed(changed(settings, "loop.epochs", 9.0), "data.path", "moved/store")
    open_folder(tmp_path / "run", longer)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == longer


def test_every_fixed_setting_exists(settings):
    for name in FIXED:
        pick(settings, name)


def test_a_foreign_folder_is_refused(tmp_path, settings):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"is not empty and holds no run \(no config.yaml\): name another folder"):
        open_folder(tmp_path, settings)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["name: other program\n", "- a list\n", "seed: [", ""])
def test_a_foreign_config_is_refused(tmp_path, settings, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config.yaml is not the configuration of a run"):
        open_folder(tmp_path, settings)
    assert (tmp_path / "config.yaml").read_text() == content


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, settings):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--out .*file/run: cannot be written \(Not a directory\)"):
        open_folder(tmp_path / "file" / "run", settings)


def test_a_file_in_the_folders_place_is_refused(tmp_path, settings):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--out .*/file: cannot be written \(File exists\)"):
        open_folder(tmp_path / "file", settings)


# ---- DeepSpeed configurations by name


@pytest.mark.parametrize("name", ["zero2", "zero2.json", "ds_configs/zero2.json"])
def test_a_shipped_configuration_is_found_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = find_ds_config(name)
    assert found.name == "zero2.json"
    assert found.is_file()


def test_a_file_of_ones_own_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("zero2.json").write_text("{}")
    assert find_ds_config("zero2.json") == Path("zero2.json")


def test_an_unknown_configuration_names_the_shipped_ones():
    with pytest.raises(UserError, match=r"no file 'zero9', and none of the shipped configurations \(zero0, zero1, "):
        find_ds_config("zero9")


# ---- the model's starting weights


def smallest_settings(overrides: dict | None = None, **more) -> ModelSettings:
    sizes = {"d_model": 32, "n_heads": 4, "ffn": 48, "image_size": 96}
    return ModelSettings(preset="tiny", overrides=sizes | (overrides or {}), **more)


def test_random_weights_are_a_function_of_the_seed(tokenizer):
    a, b, c = (make_model(smallest_settings(), tokenizer, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["generator.weight"], c["generator.weight"])
    assert a["token_embedding.weight"].shape == (len(tokenizer), 32)


def test_the_models_special_tokens_are_the_tokenizers(tokenizer):
    config = make_model(smallest_settings(), tokenizer, 0)[0].config
    assert (config.pad_token_id, config.bos_token_id) == (tokenizer.pad_token_id, tokenizer.cls_token_id)
    assert (config.eos_token_id, config.decoder_start_token_id) == (tokenizer.sep_token_id, tokenizer.cls_token_id)


def test_weights_of_an_export(tokenizer, export_folder, smallest):
    model, *_ = make_model(ModelSettings(init_from=str(export_folder)), tokenizer, 5)
    assert all(torch.equal(value, smallest().state_dict()[name]) for name, value in model.state_dict().items())


def test_an_export_with_another_tokenizer_is_refused(export_folder):
    other = train_tokenizer(iter(["完全不同的词表"]), 30)
    with pytest.raises(UserError, match=r"was trained with another tokenizer than the data's: prepare .* --tokenizer"):
        make_model(ModelSettings(init_from=str(export_folder)), other, 0)


def test_a_backbone_gives_what_fits_and_the_rest_is_new_and_named(tokenizer, export_folder, smallest):
    settings = ModelSettings(init_from=str(export_folder), overrides={"dropout": 0.1, "decoder_layers": 3})
    model, taken, origin = make_model(settings, tokenizer, 5, answers=["红色", "左边"])
    assert (model.config.dropout, model.config.n_answers, model.config.d_model) == (0.1, 2, 32)
    own, source = model.state_dict(), smallest().state_dict()
    assert all(torch.equal(own[name], source[name]) for name in source)
    assert taken == set(source)
    new = {name for name in own if name not in source}
    assert {name.split(".")[0] for name in new} == {"answer_head", "decoder_layers", "source_projections"}
    assert "  answer_head.0.weight" in origin


def test_answers_of_another_vocabulary_are_refused(tokenizer, smallest, tmp_path):
    facts = {"answers_fingerprint": answers_fingerprint(["是", "否"])}
    folder = write_export(smallest(n_answers=2), tokenizer, facts, tmp_path / "vqa", answers=["是", "否"])
    settings = ModelSettings(init_from=str(folder))
    assert "answer_head.0.weight" in make_model(settings, tokenizer, 0, answers=["是", "否"])[1]
    with pytest.raises(
        UserError, match=r"another answer vocabulary than the data's: prepare .* --answers .*answers.json"
    ):
        make_model(settings, tokenizer, 0, answers=["否", "是"])


def test_a_frozen_image_encoder_is_not_trained(tokenizer):
    model, *_ = make_model(smallest_settings({"batch_norm": "batch"}, freeze_image_encoder=True), tokenizer, 0)
    assert not any(p.requires_grad for p in model.image_encoder.parameters())
    before = {name: b.clone() for name, b in model.image_encoder.named_buffers()}
    model.train().image_encoder(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    assert all(torch.equal(b, before[name]) for name, b in model.image_encoder.named_buffers())


def test_where_answers_are_classified_the_decoder_is_not_trained(tokenizer):
    model, *_ = make_model(smallest_settings(), tokenizer, 0, answers=["红色", "左边"])
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        *("image_encoder", "token_embedding", "type_embedding", "encoder_layers", "encoder_norm", "answer_head")
    }


def test_data_of_another_task_is_refused():
    posts, questions = SimpleNamespace(task=None), SimpleNamespace(task="vqa2")
    check_task(TASKS["comments"], posts, "store")
    check_task(TASKS["vqa2"], questions, "store")
    with pytest.raises(UserError, match=r"store was prepared for task vqa2, and this is task muge"):
        check_task(TASKS["muge"], questions, "store")
    with pytest.raises(UserError, match=r"was prepared from posts with comments, and this is task muge"):
        check_task(TASKS["muge"], posts, "store")


def test_an_unknown_preset_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"unknown preset 'smal' .did you mean 'small'"):
        make_model(ModelSettings(preset="smal"), tokenizer, 0)


# ---- three models


@pytest.mark.parametrize("name", MODELS)
def test_every_model_starts_from_its_preset_with_the_tokenizers_vocabulary(tokenizer, name):
    model, taken, origin = make_model(ModelSettings(name=name, preset="tiny"), tokenizer, 0)
    assert model.config.model_type == f"cromic_{name}"
    assert model.config.vocab_size == len(tokenizer)
    assert getattr(model.config, "mask_token_id", tokenizer.mask_token_id) == tokenizer.mask_token_id
    assert (taken, origin) == (set(), "random")


def test_vilt_masks_the_words_of_the_tokenizer(tokenizer):
    model, *_ = make_model(ModelSettings(name="vilt", preset="tiny"), tokenizer, 0)
    assert model.continues.tolist() == [
        t.startswith("##") for t in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ]


def test_vilt_is_fine_tuned_without_the_losses_of_pretraining_unless_told_otherwise(tokenizer):
    settings = ModelSettings(name="vilt", preset="tiny")
    weights = lambda config: (config.mlm_weight, config.itm_weight)  # noqa: E731
    assert weights(make_model(settings, tokenizer, 0).model.config) == (1, 1)
    assert weights(make_model(settings, tokenizer, 0, fine_tuning=True).model.config) == (0, 0)
    settings.overrides["itm_weight"] = 0.5
    assert weights(make_model(settings, tokenizer, 0, fine_tuning=True).model.config) == (0, 0.5)


@pytest.mark.parametrize("name", ["vlp", "vilt"])
def test_pretrained_weights(tokenizer, tmp_path, name):
    kind = ModelSettings(name=name, preset="tiny", overrides={"dropout": 0.25})
    config = make_model(kind, tokenizer, 0).model.config
    if name == "vlp":
        sizes = {"vocab_size": len(tokenizer), "hidden_size": config.d_model, "intermediate_size": config.ffn}
        heads = {"num_attention_heads": config.n_heads, "num_hidden_layers": config.encoder_layers}
        foreign = BertModel(BertConfig(**sizes, **heads))
        words = foreign.embeddings.word_embeddings.weight
    else:
        foreign = ViltModel(config.library())
        words = foreign.embeddings.text_embeddings.word_embeddings.weight
    foreign.save_pretrained(tmp_path)
    kind.pretrained = str(tmp_path)
    model, taken, origin = make_model(kind, tokenizer, 0)
    assert torch.equal(model.get_input_embeddings().weight, words)
    assert model.config.dropout == 0.25
    assert f"from {tmp_path}: {len(taken)} tensors taken" in origin
    assert "encoder_layers.0.feed_forward.up.weight" in taken or "encoder_layers.0.output.dense.weight" in taken
    kind.init_from = "somewhere"
    with pytest.raises(UserError, match=r"model.pretrained: .* leave one of the two out"):
        make_model(kind, tokenizer, 0)


def test_two_different_backbones_are_refused():
    settings = FinetuneSettings(task="muge", backbone="a", model=ModelSettings(init_from="b"))
    with pytest.raises(UserError, match=r"backbone and model.init_from are the same thing"):
        check_settings(settings)
    settings.model.init_from = "a"  # as the config.yaml of a fine-tuning says it
    check_settings(settings)


def test_settings_of_another_model_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"model.patch_size: cromic_vlp has no such setting"):
        make_model(ModelSettings(name="vlp", preset="tiny", overrides={"patch_size": 16}), tokenizer, 0)
    with pytest.raises(
        UserError, match=r"model.objective: 'casual' \(did you mean 'causal'\?\); one of masked, causal"
    ):
        make_model(ModelSettings(name="vlp", preset="tiny", overrides={"objective": "casual"}), tokenizer, 0)
    with pytest.raises(UserError, match=r"model.mask_rate is 1.5: give a share from 0 to 1"):
        make_model(ModelSettings(name="vlp", preset="tiny", overrides={"mask_rate": 1.5}), tokenizer, 0)
    with pytest.raises(UserError, match=r"model.image_encoder: this model has no ResNet"):
        make_model(ModelSettings(name="vilt", preset="tiny", image_encoder="resnet"), tokenizer, 0)


# ---- the ResNet's starting weights

TINY_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1] * 4, "layer_type": "basic"}


def saved_resnet(folder: Path, **more) -> ResNetModel:
    torch.manual_seed(9)
    resnet = ResNetModel(ResNetConfig(**{**TINY_RESNET, **more}))
    for buffer in resnet.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.5)
    resnet.save_pretrained(folder)
    return resnet


def test_a_resnet_from_a_folder(tmp_path, tokenizer):
    resnet = saved_resnet(tmp_path / "resnet")
    model, _, origin = make_model(smallest_settings(image_encoder=str(tmp_path / "resnet")), tokenizer, 0)
    taken = model.image_encoder.backbone.state_dict()
    assert taken.keys() == resnet.state_dict().keys()
    assert all(torch.equal(taken[name], value) for name, value in resnet.state_dict().items())
    assert f"{len(taken)} tensors taken" in origin


def test_a_deeper_resnet_lists_what_has_no_place(tmp_path, tokenizer):
    saved_resnet(tmp_path / "resnet", depths=[1, 1, 1, 2])
    model, *_ = make_model(smallest_settings(), tokenizer, 0)
    report = load_image_encoder(model, str(tmp_path / "resnet"))
    assert "12 extra:\n  encoder.stages.3.layers.1.layer.0.convolution.weight" in str(report)


def test_a_wider_resnet_is_refused(tmp_path, tokenizer):
    saved_resnet(tmp_path / "resnet", hidden_sizes=[16, 32, 64, 256])
    model, *_ = make_model(smallest_settings(), tokenizer, 0)
    with pytest.raises(
        UserError, match=r"does not fit the model's ResNet: .*: \(256, 64, .* there, \(128, 64, .* here"
    ):
        load_image_encoder(model, str(tmp_path / "resnet"))


def test_a_folder_without_a_resnet_is_refused(tmp_path, tokenizer, export_folder):
    model, *_ = make_model(smallest_settings(), tokenizer, 0)
    for source in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"model.image_encoder: .* cannot be read"):
            load_image_encoder(model, str(source))
    # transformers would fill another kind of model in with random weights
    with pytest.raises(UserError, match=r"model.image_encoder: .* is no ResNetModel: it has no embedder"):
        load_image_encoder(model, str(export_folder))


def test_a_damaged_resnet_is_refused(tmp_path, tokenizer):
    saved_resnet(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"model.image_encoder: .* cannot be read"):
        load_image_encoder(make_model(smallest_settings(), tokenizer, 0)[0], str(tmp_path))


# ---- batch-norm statistics


def test_frozen_statistics_are_those_of_the_first_pictures(store, tokenizer):
    dataset, data = open_dataset(store, "train"), DataSettings(path=str(store), workers=0)
    a, b = (make_model(smallest_settings({"batch_norm": "frozen"}), tokenizer, 0)[0] for _ in range(2))
    for model in (a, b):
        calibrate_batch_norm(model, set(), dataset, data)
    norm = a.image_encoder.backbone.embedder.embedder.normalization
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    assert np.array_equal(norm.running_mean, b.image_encoder.backbone.embedder.embedder.normalization.running_mean)


@pytest.mark.parametrize(
    ("batch_norm", "taken"),
    [("batch", set()), ("frozen", {"image_encoder.backbone.embedder.embedder.convolution.weight"})],
)
def test_other_statistics_stay_as_they_are(store, tokenizer, batch_norm, taken):
    dataset, data = open_dataset(store, "train"), DataSettings(path=str(store), workers=0)
    model, *_ = make_model(smallest_settings({"batch_norm": batch_norm}), tokenizer, 0)
    calibrate_batch_norm(model, taken, dataset, data)
    norm = model.image_encoder.backbone.embedder.embedder.normalization
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
