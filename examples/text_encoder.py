"""A sentence encoder, and what can be done with it: find the sentence that means the same.

    python examples/text_encoder.py

Packages the bundled MiniLM, then loads the package with ONNX Runtime and its own tokenizer, as an app does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import edgeq

SENTENCES = (
    "The train to the coast leaves at seven in the morning.",
    "Add a pinch of salt once the water boils.",
    "Her new phone takes pictures even in the dark.",
)
QUESTIONS = ("When can I travel to the sea?", "How do I cook pasta?", "Which camera works at night?")


def embed(folder: Path, texts: tuple[str, ...]) -> np.ndarray:
    """Normalized mean of the token vectors: ``[texts, features]``."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    manifest = json.loads((folder / "manifest.json").read_text())
    options = onnxruntime.SessionOptions()
    for key, value in manifest["provider"]["session"].items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    vectors = []
    for text in texts:
        encoding = tokenizer.encode(text)
        columns = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        columns["token_type_ids"] = encoding.type_ids
        inputs = {i.name: np.array([columns[i.name]], np.int64) for i in session.get_inputs()}
        hidden = session.run(None, inputs)[0][0]
        vectors.append(hidden.mean(axis=0) / np.linalg.norm(hidden.mean(axis=0)))
    return np.stack(vectors)


def main() -> None:
    """Package, then search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo-output/minilm"))
    parser.add_argument("--target", default="linux-x64")
    arguments = parser.parse_args()

    result = edgeq.export("example:minilm", target=arguments.target, output=arguments.output, overwrite=True)
    report = result.report
    print(f"packaged in {report.precision}: {result.path}, {report.size.ratio:.2f} times smaller than float")
    print(f"{report.primary}: {report.metric(report.primary).value:.4f}")

    likeness = embed(result.path, QUESTIONS) @ embed(result.path, SENTENCES).T
    for question, row in zip(QUESTIONS, likeness, strict=True):
        print(f"{question} -> {SENTENCES[row.argmax()]} ({row.max():.2f})")


if __name__ == "__main__":
    main()
