// Logs in, and takes pictures of pages in a headless Chromium: for each a line of JSON with the words that the page is made
// of (headings, columns, fields, buttons), whatever it is about.
//   node pictures.mjs CHROMIUM ADDRESS NAME PASSWORD PICTURES
//     PICTURES: JSON, a list of {file, path, fill: [selector, value] ..., press: selector or null, top: selector to begin at, height: CSS pixels}
import { chromium } from 'playwright-core';

const [executablePath, address, name, password, pictures] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] }); // in CI we are root
const page = await browser.newPage({ viewport: { width: 1180, height: 900 }, colorScheme: 'light' });
page.setDefaultTimeout(120_000);
await page.goto(`${address}/login`);
await page.fill('[name=name]', name);
await page.fill('[name=password]', password);
await Promise.all([page.waitForNavigation(), page.click('main button')]);
for (const { file, path, fill, press, top, height } of JSON.parse(pictures)) {
  await page.goto(address + path);
  for (const [field, value] of fill) await page.locator(field).first().fill(value);
  if (press) await Promise.all([page.waitForNavigation(), page.locator(press).first().click()]);
  await page.waitForFunction(() => [...document.images].every(image => image.loading === 'lazy' || image.complete));
  await page.locator('img[loading=lazy]').evaluateAll(all => all.forEach(image => (image.loading = 'eager')));
  await page.waitForFunction(() => [...document.images].every(image => image.complete));
  const { y } = await page.locator(top).first().boundingBox();
  await page.screenshot({ path: file, fullPage: true, clip: { x: 0, y: Math.max(0, y - 8), width: 1180, height } });
  const words = await page.locator('nav a, h2, th, legend, dl.facts > dt, .field > span, button, main .pages a').allInnerTexts();
  console.log(JSON.stringify(words.map(each => each.trim()).filter(Boolean)));
}
await browser.close();
