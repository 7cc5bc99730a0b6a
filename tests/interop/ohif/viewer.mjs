// OHIF in a headless Chromium, told what to do line by line: {"do": "open", ...} on stdin, {"done": ...} or {"error": ...} back.
//   node viewer.mjs CHROMIUM ORTHANC_URL
import { chromium } from 'playwright-core';
import { serve } from './serve.mjs';
import { told } from './told.mjs';

const [executablePath, orthanc] = process.argv.slice(2);
const address = await serve(orthanc);
const browser = await chromium.launch({
  executablePath,
  // WebGL in software: there is no graphics card. No sandbox: in CI we are root.
  args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
});
let page;
let errors;

const actions = {
  /** A study in a page of its own. */
  async open({ study }) {
    await page?.close();
    page = await browser.newPage({ viewport: { width: 1024, height: 640 } });
    page.setDefaultTimeout(120_000);
    errors = [];
    page.on('pageerror', error => errors.push(String(error.stack)));
    page.on('response', r => r.status() >= 400 && errors.push(`${r.status()} ${r.url()}`));
    // the tour of a first visit would cover the image
    await page.addInitScript(() => localStorage.setItem('shownTours', '["basicViewerTour"]'));
    await page.goto(`${address}viewer?StudyInstanceUIDs=${study}`);
    await page.locator('canvas').first().waitFor();
  },
  async click({ selector, text = '', number = 0, times = 1 }) {
    await page.locator(selector).filter({ hasText: text }).nth(number).click({ clickCount: times });
  },
  async press({ key, times = 1 }) {
    for (let n = 0; n < times; n++) await page.keyboard.press(key);
  },
  /** A picture of the whole page, where the image is on it, and what is written there. */
  async look({ path }) {
    const canvas = page.locator('canvas').first();
    let box;
    do await canvas.waitFor(); // OHIF makes it anew now and then
    while (!(box = await canvas.boundingBox()));
    await page.screenshot({ path });
    return {
      box,
      errors,
      written: await page.locator('svg text').allTextContents(),
      rows: await page.locator('[data-cy^="measurement-table-row"]').allInnerTexts(),
    };
  },
};

await told(actions, address);
await browser.close();
process.exit(0);
