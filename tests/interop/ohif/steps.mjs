// Does in a headless Chromium, without JavaScript, what a person would: one step after the other.
//   node steps.mjs CHROMIUM WIDTH STEPS     STEPS: JSON, a list of [what, where, with]; each "read" is a line of JSON
import { chromium } from 'playwright-core';

const [executablePath, width, steps] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] }); // in CI we are root
const context = await browser.newContext({ javaScriptEnabled: false, viewport: { width: Number(width), height: 900 } });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
for (const [what, where, value] of JSON.parse(steps)) {
  if (what === 'goto') await page.goto(where);
  if (what === 'fill') await page.locator(where).first().fill(value);
  if (what === 'check') await page.locator(where).first().check();
  if (what === 'select') await page.locator(where).first().selectOption(value);
  if (what === 'upload') await page.locator(where).first().setInputFiles(value);
  if (what === 'open') await page.locator(where).first().click();
  if (what === 'click') {
    await Promise.all([page.waitForNavigation(), page.locator(where).first().click()]);
  }
  if (what === 'picture') await page.screenshot({ path: where, fullPage: true });
  if (what === 'read') {
    const wide = await page.locator('*').evaluateAll(all => all
      .filter(e => e.scrollWidth > e.clientWidth && e.clientWidth > 0 && !['INPUT', 'SELECT'].includes(e.tagName)
        && getComputedStyle(e).display !== 'inline')
      .map(e => `${e.tagName.toLowerCase()}.${e.className} ${e.scrollWidth} > ${e.clientWidth}`));
    console.log(JSON.stringify({ url: page.url(), text: await page.locator('main').innerText(), wide }));
  }
}
await browser.close();
