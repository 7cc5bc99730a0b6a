// A page in a headless Chromium, told what to do line by line: {"do": "open", ...} on stdin, {"done": ...} or {"error": ...} back.
// What the page complains of (its console, its policy, what it could not load) is kept.
//   node seen.mjs CHROMIUM
import { chromium } from 'playwright-core';
import { told } from './told.mjs';

const [executablePath] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  // WebGL in software: there is no graphics card. No sandbox: in CI we are root.
  args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
});
let page;
let errors;

/** A button or a link by its words. within: only in what holds this. */
function named(words, within) {
  const those = page.locator(within).first();
  return those.getByRole('button', { name: words, exact: true }).or(those.getByRole('link', { name: words, exact: true })).first();
}

const actions = {
  /** In a browser that nobody has used yet. trusts: also a certificate that nobody known has signed. */
  async open({ url, width = 1000, height = 800, javaScript = true, trusts = false }) {
    await page?.context().close();
    const context = await browser.newContext({
      viewport: { width, height }, javaScriptEnabled: javaScript, ignoreHTTPSErrors: trusts,
    });
    page = await context.newPage();
    page.setDefaultTimeout(120_000);
    errors = [];
    page.on('pageerror', error => errors.push(String(error.stack)));
    page.on('console', said => said.type() === 'error' && errors.push(said.text()));
    page.on('response', r => r.status() >= 400 && errors.push(`${r.status()} ${r.url()}`));
    page.on('request', r => new URL(r.url()).origin !== new URL(url).origin && errors.push(`asked for ${r.url()}`));
    if (javaScript) {
      await page.addInitScript(() =>
        document.addEventListener('securitypolicyviolation', e => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`)));
    }
    const response = await page.goto(url);
    return response?.status() ?? null; // none of a file
  },
  /** On, in the same browser: who has logged in stays so. */
  async go({ url }) {
    const response = await page.goto(url);
    return response.status();
  },
  /** A field by its name, whatever kind it is of; of boxes that are ticked the one with this value. number: of several. */
  async fill({ field, value, number = 0 }) {
    const fields = page.locator(`[name="${field}"]:visible`);
    const kind = await fields.first().evaluate(e => (e.tagName === 'SELECT' ? 'select' : e.type));
    if (kind === 'select') await fields.first().selectOption(value);
    else if (kind === 'file') await fields.first().setInputFiles(value);
    else if (kind === 'checkbox') await (value ? fields.and(page.locator(`[value="${value}"]`)) : fields).first().check();
    else await fields.nth(number).fill(value);
  },
  /** A button or a link by its words, and what comes of it has loaded. within: only in what holds this. */
  async follow({ words, within = 'body' }) {
    await Promise.all([page.waitForNavigation(), named(words, within).click()]);
  },
  /** What a button or a link downloads: under which name, and where it lies now. */
  async download({ words, within = 'body' }) {
    const [got] = await Promise.all([page.waitForEvent('download'), named(words, within).click()]);
    return { name: got.suggestedFilename(), path: await got.path() };
  },
  async text() {
    return page.locator('main').innerText();
  },
  async where() {
    return page.url();
  },
  async press({ key, times = 1 }) {
    for (let n = 0; n < times; n++) await page.keyboard.press(key);
  },
  async click({ selector, number = 0 }) {
    await page.locator(selector).nth(number).click();
  },
  async wheel({ x, y, by }) {
    await page.mouse.move(x, y);
    await page.mouse.wheel(0, by);
  },
  /** The value of an expression in the page. */
  async evaluate({ code }) {
    return page.evaluate(code);
  },
  async picture({ path }) {
    await page.screenshot({ path });
  },
  async wide() {
    return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  },
  async errors() {
    return errors;
  },
};

await told(actions, 'ready');
await browser.close();
process.exit(0);
