// Shows what has changed, in the place of reloading the page: what somebody is choosing or typing stays.
'use strict';
const SLOWEST_MS = 60000; // where no events come through, a proxy holds them back
let shown = Date.now();
let busy = false;

function inUse() {
  const at = document.activeElement;
  return document.querySelector('main input[type="checkbox"][name="series"]:checked, main input[name="all"]:checked')
    || (at && at.closest('main') && ['INPUT', 'SELECT', 'TEXTAREA'].includes(at.tagName));
}

async function show() {
  if (busy || document.hidden || inUse()) return;
  busy = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: 'text/html' } });
    if (answer.redirected || !answer.ok) { location.reload(); return; } // logged out, or gone
    const next = new DOMParser().parseFromString(await answer.text(), 'text/html').querySelector('main');
    const main = document.querySelector('main');
    if (!next || inUse()) return;
    const open = [...main.querySelectorAll('details')].map(each => each.open);
    next.querySelectorAll('details').forEach((each, number) => { each.open = open[number] || each.open; });
    const at = main.contains(document.activeElement) ? document.activeElement.outerHTML : null;
    main.replaceWith(next);
    // who goes by keyboard stays where he is, if it is still there
    if (at) [...next.querySelectorAll('a, button, summary')].find(each => each.outerHTML === at)?.focus({ preventScroll: true });
    shown = Date.now();
  } catch {
    // the node is away for a moment: the next event comes when it is back
  } finally {
    busy = false;
  }
}

if (window.EventSource) {
  const changes = new EventSource('/api/changes');
  changes.addEventListener('changed', show);
}
setInterval(() => { if (Date.now() - shown > SLOWEST_MS) show(); }, 5000);
