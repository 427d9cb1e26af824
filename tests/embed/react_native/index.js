// The app of the tests: what the packages do with what the job says.

import { EfficientnetLite0 } from "efficientnet-lite0";
import { checkSamples } from "efficientnet-lite0/dist/check";
import { Minilm } from "minilm";
import { checkSamples as checkTexts } from "minilm/dist/check";
import { Tokenizer } from "minilm/dist/wordpiece";

const tokenizer = require("minilm/assets/tokenizer.json");

globalThis.app = async (job) => {
  const [pictures, texts] = await Promise.all([EfficientnetLite0.load(), Minilm.load({ threads: 1 }), EfficientnetLite0.load()]);
  const classes = [];
  for (const { file, width, height } of job.pictures) {
    const data = globalThis.readPixels(file);
    const behind = new Uint8Array(data.length + 3).subarray(3); // an array that does not begin where its buffer does
    behind.set(data);
    classes.push(await pictures.classify({ data: behind, width, height }, 2));
  }
  const tokens = Tokenizer.of(tokenizer).encode(job.texts, 128, true);
  const embeddings = [...(await texts.embed([])), ...(await texts.embed(job.texts))];
  const input = new Float32Array(3 * 224 * 224 + 9999).fill(0.25, 9999);
  const found = {
    classes,
    provider: pictures.provider,
    closeness: [await checkSamples(pictures), await checkTexts(texts)],
    ids: [...tokens.ids].map(Number),
    embeddings: embeddings.map((vector) => [...vector]),
    logits: [...(await pictures.run({ inputs: input.subarray(9999) })).logits],
  };
  await pictures.release();
  await texts.release();
  return found;
};
