// Opens pages in a headless Chromium and says what does not fit the window: one line of JSON a page.
//   node pages.mjs CHROMIUM WIDTH HEIGHT DARK URL [PICTURE] [URL PICTURE ...]     PICTURE "-": none is taken
import { chromium } from 'playwright-core';

const [executablePath, width, height, dark, ...rest] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] }); // in CI we are root
const page = await browser.newPage({
  viewport: { width: Number(width), height: Number(height) },
  colorScheme: dark === 'dark' ? 'dark' : 'light',
  locale: process.env.READS || 'en', // what the browser says it reads
});
for (let n = 0; n < rest.length; n += 2) {
  const [url, picture] = rest.slice(n, n + 2);
  const response = await page.goto(url);
  await page.locator('details').evaluateAll(all => all.forEach(one => (one.open = true)));
  // sideways: the page is wider than the window, or something in it has to be scrolled or is cut off
  const wide = await page.evaluate(() =>
    [document.documentElement, ...document.body.querySelectorAll('*')]
      .filter(e => e.scrollWidth > e.clientWidth && e.clientWidth > 0 && getComputedStyle(e).display !== 'inline')
      .map(e => `${e.tagName.toLowerCase()}.${e.className} ${e.scrollWidth} > ${e.clientWidth}`));
  const buttons = await page.locator('button').evaluateAll(all => all.map(b => {
    const box = b.getBoundingClientRect();
    return [b.textContent, box.left, box.right];
  }));
  if (picture && picture !== '-') await page.screenshot({ path: picture });
  const lang = await page.locator('html').getAttribute('lang');
  console.log(JSON.stringify({ url, lang, status: response.status(), wide, buttons }));
}
await browser.close();
