// Serves a generated project and opens its page: node drive_page.mjs FOLDER CHROMIUM QUERY [SCREENSHOT]; prints what it found as JSON.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, executablePath, query, screenshot] = process.argv.slice(2);
const { chromium } = createRequire(join(folder, "package.json"))("playwright-core");
const server = spawn(process.execPath, ["demo/serve.mjs", "0"], { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
const address = await new Promise((resolve) => server.stdout.once("data", (data) => resolve(String(data).trim())));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-quic"] });
try {
  const page = await browser.newPage({ viewport: { width: 900, height: 620 } });
  const words = [];
  page.on("console", (message) => words.push(message.text()));
  page.on("pageerror", (error) => words.push(String(error)));
  await page.goto(`${address}?${query}`);
  await page.waitForFunction(() => document.body.dataset.state, null, { timeout: 240_000 });
  const found = await page.evaluate(() => ({
    ...document.body.dataset,
    isolated: crossOriginIsolated,
    status: document.getElementById("status").textContent,
  }));
  if (screenshot) await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ ...found, words }));
} finally {
  await browser.close();
  server.kill();
}
