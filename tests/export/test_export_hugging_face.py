from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeq import graph, runtime
from edgeq.errors import ExportError
from edgeq.recipe import ImagePreprocess, TextPreprocess
from edgeq.source import Licence
from edgeq.stages.export import load_source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("optimum.exporters.onnx")
pytestmark = pytest.mark.torch

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "boats", "were", "coming", "in", ",", "."]


def save(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def bert_config(**options):
    return transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SMALL, **options)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        bert_config(num_labels=3, id2label={0: "calm", 1: "rough", 2: "fog"})
    )
    folder = save(model, tmp_path_factory.mktemp("hf") / "harbour")
    write_tokenizer(folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Harbour\nlicense: none\n")
    return model.eval(), load_source(folder)


def test_a_text_classifier_from_a_folder(bert) -> None:
    _, source = bert
    assert source.name == "harbour"
    assert source.task == "text-classification"
    assert source.labels == ("calm", "rough", "fog")
    assert source.licences == (Licence("weights", "apache-2.0", "model card (README.md)"),)
    assert [info.describe() for info in graph.input_infos(source.model)] == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
        "token_type_ids: int64[batch, sequence]",
    ]
    assert [info.describe() for info in graph.output_infos(source.model)] == ["logits: float32[batch, 3]"]
    assert source.provenance["dynamic"] == "batch, sequence"
    assert source.provenance["exporter"].startswith("torch.onnx.export(dynamo=True)")
    assert source.model.opset_imports[""] == 21
    assert source.parity.samples == 2
    assert source.parity.sqnr_db > 100


def test_the_example_is_a_real_sentence(bert) -> None:
    _, source = bert
    assert isinstance(source.preprocess, TextPreprocess)
    assert source.preprocess.max_length == 24
    ids = source.example_inputs["input_ids"]
    assert ids.shape == (1, 24)
    assert ids[0, 0] == WORDS.index("[CLS]")
    assert WORDS.index("boats") in ids
    np.testing.assert_array_equal(source.example_inputs["attention_mask"], (ids != 0).astype(np.int64))


@pytest.mark.parametrize(("batch", "length"), [(1, 24), (5, 7), (2, 1)])
def test_batch_and_length_are_dynamic(bert, batch: int, length: int) -> None:
    model, source = bert
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": rng.integers(0, len(WORDS), (batch, length)),
        "attention_mask": (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64),
        "token_type_ids": rng.integers(0, 2, (batch, length)),
    }
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(runtime.run_model(source.model, inputs)["logits"], expected, atol=1e-5)


def test_an_image_classifier_with_its_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **SMALL))
    folder = save(model, tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    source = load_source(folder)
    assert source.task == "image-classification"
    assert source.preprocess == ImagePreprocess(
        crop=(32, 32), stretch=True, interpolation="bilinear", mean=(127.5,) * 3, std=(127.5,) * 3
    )
    assert [info.describe() for info in graph.input_infos(source.model)] == ["pixel_values: float32[batch, 3, 32, 32]"]
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(pixels)).logits.numpy()
    np.testing.assert_allclose(runtime.run_model(source.model, {"pixel_values": pixels})["logits"], expected, atol=1e-5)


def test_a_detectors_boxes_are_those_of_transformers(tmp_path: Path) -> None:
    """YOLOS has DETR's head; the graph behind it gives what ``post_process_object_detection`` gives."""
    from edgeq.graph import output_infos
    from edgeq.stages.wrap import boxes_back, join
    from edgeq.wrap import BoxChoice

    torch.manual_seed(0)
    names = {number: f"thing {number}" for number in range(5)}
    config = transformers.YolosConfig(image_size=[32, 48], num_detection_tokens=12, id2label=names, **SMALL)
    model = transformers.YolosForObjectDetection(config).eval()
    source = load_source(save(model, tmp_path / "eyes"))
    assert (source.task, source.boxes, source.labels) == ("object-detection", "detr", tuple(names.values()))
    choice = BoxChoice(least_score=0.1)
    options = {"size": None, "seen": None, "classes": 5, "opset": 21}
    back = boxes_back(output_infos(source.model), source.boxes, choice, **options)
    whole = join(source.model, None, back.graph, back.replaces).model
    pictures = torch.randn(2, 3, 32, 48)
    found = runtime.run_model(whole, {"pixel_values": pictures.numpy()})
    with torch.no_grad():
        outputs = model(pixel_values=pictures)
    sizes = [(1, 1), (1, 1)]
    wanted = transformers.YolosImageProcessor().post_process_object_detection(outputs, 0.1, sizes)
    for row, theirs in enumerate(wanted):
        order = torch.argsort(-theirs["scores"], stable=True).numpy()
        count = int(found["box_count"][row])
        assert 0 < count == len(order)
        np.testing.assert_allclose(found["box_scores"][row, :count], theirs["scores"].numpy()[order], atol=1e-5)
        np.testing.assert_allclose(found["boxes"][row, :count], theirs["boxes"].numpy()[order].clip(0, 1), atol=1e-5)
        assert found["box_classes"][row, :count].tolist() == theirs["labels"].numpy()[order].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        ("DistilBertForQuestionAnswering", "batch, sequence"),
        ("RobertaForMaskedLM", "batch, sequence"),
        ("AlbertModel", "batch, sequence"),
        ("MobileNetV2ForImageClassification", "batch"),
        ("ResNetForImageClassification", "batch"),
        ("SwinForImageClassification", "batch"),
    ],
)
def test_other_architectures(name: str, dynamic: str, tmp_path: Path) -> None:
    configs = {
        "DistilBertForQuestionAnswering": lambda: transformers.DistilBertConfig(
            vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64
        ),
        "RobertaForMaskedLM": lambda: transformers.RobertaConfig(vocab_size=99, max_position_embeddings=40, **SMALL),
        "AlbertModel": lambda: transformers.AlbertConfig(vocab_size=99, embedding_size=16, **SMALL),
        "MobileNetV2ForImageClassification": lambda: transformers.MobileNetV2Config(
            image_size=64, depth_multiplier=0.35
        ),
        "ResNetForImageClassification": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]
        ),
        "SwinForImageClassification": lambda: transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=4
        ),
    }
    torch.manual_seed(0)
    source = load_source(save(getattr(transformers, name)(configs[name]()), tmp_path / "model"))
    assert source.provenance["dynamic"] == dynamic
    assert source.parity is not None
    assert source.parity.sqnr_db > 100


def fail_on_dynamic_shapes(monkeypatch: pytest.MonkeyPatch, *, always: bool) -> None:
    from edgeq.stages.export import hugging_face

    export = hugging_face.export_module

    def failing(module, inputs, *, dynamic_shapes=None, **rest):
        if always or (dynamic_shapes and any(1 in axes for axes in dynamic_shapes.values())):
            raise ExportError("torch cannot export the model: out of order")
        return export(module, inputs, dynamic_shapes=dynamic_shapes, **rest)

    monkeypatch.setattr(hugging_face, "export_module", failing)


@pytest.mark.slow
def test_fewer_dynamic_axes_where_torch_cannot_do_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_dynamic_shapes(monkeypatch, always=False)
    source = load_source(save(transformers.BertModel(bert_config()), tmp_path / "bert"))
    assert source.provenance["dynamic"] == "batch (with all axes: torch cannot export the model: out of order)"
    assert graph.input_infos(source.model)[0].shape == ("batch", 16)


def test_optimum_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_dynamic_shapes(monkeypatch, always=True)
    source = load_source(save(transformers.BertModel(bert_config()), tmp_path / "bert"))
    assert source.provenance["exporter"].startswith("optimum-onnx ")
    assert "torch cannot export the model: out of order" in source.provenance["exporter"]
    assert source.model.opset_imports[""] == 21
    assert [info.name for info in graph.output_infos(source.model)] == ["last_hidden_state"]
    assert source.parity is not None
    assert source.parity.sqnr_db > 100


def test_pickled_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    folder = save(transformers.BertModel(bert_config()), tmp_path / "bert", safe_serialization=False)
    assert [path.name for path in folder.glob("*model*")] == ["pytorch_model.bin"]
    with pytest.raises(ExportError, match=r"only as pickle files \(pytorch_model\.bin\), which can run code"):
        load_source(folder)


@pytest.mark.slow
def test_pickled_weights_are_loaded_where_allowed(tmp_path: Path) -> None:
    folder = save(transformers.BertModel(bert_config()), tmp_path / "bert", safe_serialization=False)
    assert load_source(folder, allow_pickle=True).parity is not None


def test_weights_that_the_task_lacks_are_refused(tmp_path: Path) -> None:
    folder = save(transformers.BertModel(bert_config()), tmp_path / "bert")
    with pytest.raises(ExportError, match=r"the files lack 2 weights that this task needs \(classifier\.weight, cl"):
        load_source(folder, task="text-classification")


@pytest.mark.slow
def test_missing_weights_that_reach_no_output_do_not_matter(tmp_path: Path) -> None:
    """A masked language model has no pooler, and last_hidden_state needs none."""
    folder = save(transformers.BertForMaskedLM(bert_config()), tmp_path / "bert")
    source = load_source(folder, task="feature-extraction")
    assert [info.name for info in graph.output_infos(source.model)] == ["last_hidden_state"]


@pytest.mark.parametrize(
    ("change", "task", "text"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
            None,
            "decoder language models cannot be exported yet",
        ),
        ({"is_encoder_decoder": True}, None, "decoder language models cannot be exported yet"),
        ({"architectures": ["NoSuchModel"]}, None, r"the task cannot be told from the architecture \(NoSuchModel\)"),
        ({}, "cooking", "unknown task 'cooking'[\\s\\S]*feature-extraction"),
        ({"auto_map": {"AutoModel": "code.Net"}, "model_type": "own"}, None, "brings Python code of its own"),
        ({"hidden_size": 16}, None, "transformers cannot load the model|the files lack"),
    ],
    ids=["decoder", "encoder-decoder", "architecture", "task", "remote-code", "config-and-weights-differ"],
)
def test_models_that_are_refused(change: dict, task: str | None, text: str, tmp_path: Path) -> None:
    folder = save(transformers.BertModel(bert_config()), tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ExportError, match=text):
        load_source(folder, task=task)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    bert_config().save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="no weights that can be loaded"):
        load_source(tmp_path)


def test_an_id_offline_without_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ExportError, match=r"not in the local cache, .* HF_HUB_OFFLINE is set[\s\S]*local folder"):
        load_source("nobody/nothing-of-this-name")
