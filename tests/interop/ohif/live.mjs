// A page that shows what changes: says on standard output what it sees, a line at a time.
//   node live.mjs CHROMIUM URL
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const [executablePath, url] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] }); // in CI we are root
const page = await browser.newPage();
page.setDefaultTimeout(60000);
const known = page.waitForResponse(response => response.url().endsWith('/api/changes'));
await page.goto(url);
await known;
await page.evaluate(() => { window.reloaded = false; });
const link = page.locator('main a.series').first();
await link.focus();
const focused = await link.getAttribute('href');
console.log('open');
await page.waitForFunction(() => document.querySelector('main').innerText.includes('Came-meanwhile'));
const same = await page.evaluate(() => window.reloaded === false);
const kept = await page.evaluate(href => document.activeElement.getAttribute('href') === href, focused);
console.log(same ? `seen, not reloaded${kept ? '' : ', and the focus is lost'}` : 'reloaded');
await page.locator('input[name="series"]').first().check();
console.log('chosen');
await lines.next();
// told of the next change: the event after it has come and gone
await page.waitForResponse(response => response.url().endsWith('/api/changes'));
await page.waitForTimeout(1000);
const stands = await page.evaluate(() =>
  document.querySelector('input[name="series"]').checked && !document.querySelector('main').innerText.includes('Came-later'));
console.log(stands ? 'the choice stands' : 'the choice is gone');
await browser.close();
process.exit(0);
