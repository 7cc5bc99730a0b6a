// Logs in, opens pages in a headless Chromium, and says what who cannot see well, or uses no mouse, meets there: one line
// of JSON a page.
//   node axe.mjs CHROMIUM ADDRESS NAME PASSWORD PAGES
//     PAGES: JSON, a list of [path, selectors of buttons to press there, one after the other]
import { readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';

const [executablePath, address, name, password, pages] = process.argv.slice(2);
const axe = readFileSync(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');
const LOOKS = [['light', 1280], ['light', 390], ['dark', 1280]]; // colours are the same in either width
const OF_COLOURS = ['color-contrast', 'link-in-text-block']; // all that the dark look can change
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
});

/** The next Tab comes to the first control of the page. */
function fromTheTop() {
  document.body.tabIndex = -1;
  document.body.focus();
  document.body.removeAttribute('tabindex');
  window.scrollTo(0, 0);
}

/** What the Tab key comes to, in its order, and what it does not come to. */
async function tabbed(page) {
  const order = [];
  await page.evaluate(fromTheTop);
  await page.evaluate(() => {
    window.all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"], [tabindex]')];
  });
  for (let n = 0; n < 1000; n++) {
    await page.keyboard.press('Tab');
    const seen = await page.evaluate(() => {
      const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
      return e === document.body ? null : {
        number: window.all.indexOf(e), // in the order of the document
        what: e.outerHTML.slice(0, 120),
        outlined: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
        inView: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
      };
    });
    const last = order.at(-1);
    if (seen === null || (last && seen.number < last.number)) break; // once round
    if (seen.number !== last?.number) order.push(seen); // a date has several parts
  }
  const missed = await page.evaluate(numbers => window.all
    .filter((e, n) => !numbers.includes(n) && e.checkVisibility({ visibilityProperty: true }) && !e.disabled && e.tabIndex >= 0 && e.type !== 'hidden')
    .map(e => e.outerHTML.slice(0, 120)), order.map(e => e.number));
  return { order, missed };
}

/** The first control of all, and what has the focus once it is pressed. */
async function skipped(page) {
  await page.evaluate(fromTheTop);
  await page.keyboard.press('Tab');
  const first = await page.evaluate(() => document.activeElement.textContent);
  await page.keyboard.press('Enter');
  return [first, await page.evaluate(() => document.activeElement.localName)];
}

const page = await browser.newPage({ viewport: { width: 1280, height: 844 } });
page.setDefaultTimeout(120_000);
for (const [path, clicks] of JSON.parse(pages)) {
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setViewportSize({ width: 1280, height: 844 });
  await page.goto(address + path);
  for (const selector of clicks) {
    if (await page.locator('[name=password]').count()) {
      await page.fill('[name=name]', name);
      await page.fill('[name=password]', password);
    }
    await Promise.all([page.waitForNavigation(), page.locator(selector).first().click()]);
  }
  if (await page.locator('#viewer:not([data-begin])').count()) {
    await page.waitForFunction(() => ['ready', 'failed', 'refused'].includes(document.getElementById('viewer').dataset.state));
  }
  await page.locator('details').evaluateAll(all => all.forEach(one => (one.open = true)));
  await page.locator('datalist').evaluateAll(all => all.forEach(one => one.remove())); // thousands of keywords, of which none is seen
  await page.evaluate(axe);
  const violations = [];
  for (const [colorScheme, width] of LOOKS) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 844 });
    const { violations: found } = await page.evaluate(
      rules => axe.run(rules ? { runOnly: { type: 'rule', values: rules } } : {}), colorScheme === 'dark' ? OF_COLOURS : null);
    violations.push(...found.map(v => `${colorScheme}, ${width} px: ${v.id}: ${v.help}: ${v.nodes[0].html.slice(0, 200)}: ${v.nodes[0].failureSummary}`));
  }
  await page.setViewportSize({ width: 1280, height: 844 });
  const { order, missed } = await tabbed(page);
  console.log(JSON.stringify({ path, lang: await page.locator('html').getAttribute('lang'), title: await page.title(), violations, order, missed, skipped: await skipped(page) }));
}
await browser.close();
