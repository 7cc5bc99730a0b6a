// A clip of ultrasound, played: each frame as the machine shows it, and what was found outlined on that very frame.
// Nothing is loaded but from the node; nothing plays before somebody asks.
(() => {
  'use strict';
  const root = document.getElementById('cine');
  if (!root) return;
  const api = `/api/series/${root.dataset.uid}`;
  /** A text of ours in the language of the page, with what stands in its braces. */
  const translated = JSON.parse(root.dataset.words || '{}');
  const t = (text, values = {}) => (translated[text] || text).replace(/{(\w+)}/g, (all, name) => values[name] ?? all);
  const canvas = root.querySelector('canvas'), pen = canvas.getContext('2d');
  const words = root.querySelector('.words'), where = root.querySelector('.where');
  const slider = root.querySelector('input[type=range]');
  const playing = root.querySelector('.play'), outlining = root.querySelector('.outlines');
  const CALIPER = '#ff0'; // as the captures have it
  const state = { frame: 0, plays: false, outlines: true, finding: -1, drawn: [] };
  let told, film, clock;

  const say = text => { words.textContent = text; words.hidden = !text; };

  const asked = async () => {
    for (;;) {
      const answer = await fetch(`${api}/view`, { headers: { accept: 'application/json' } });
      const said = await answer.json();
      if (!answer.ok) throw new Error(said.error || t('the node answers {status}', { status: answer.status }));
      if (said.state !== 'preparing') return said;
      say(t('The node prepares the clip …'));
      await new Promise(done => setTimeout(done, 700));
    }
  };

  const pictures = new Map(); // the last ones, decoded: all of a long clip would take gigabytes
  const picture = index => {
    if (!pictures.has(index)) {
      const { at, bytes } = told.frames[index];
      pictures.set(index, createImageBitmap(new Blob([film.subarray(at, at + bytes)], { type: 'image/jpeg' })));
      if (pictures.size > 32) {
        const [oldest] = pictures.keys();
        pictures.get(oldest).then(each => each.close());
        pictures.delete(oldest);
      }
    }
    return pictures.get(index);
  };

  const show = async index => {
    state.frame = (index + told.frames.length) % told.frames.length;
    const shown = state.frame, image = await picture(shown);
    if (shown !== state.frame) return; // another one was asked for meanwhile
    const { columns, rows, name } = told.frames[shown];
    if (canvas.width !== columns || canvas.height !== rows) { canvas.width = columns; canvas.height = rows; }
    pen.drawImage(image, 0, 0);
    const drawn = [];
    for (const finding of state.outlines ? told.outlines : []) {
      const here = finding.on.find(each => each.frame === shown);
      if (!here) continue;
      pen.beginPath();
      for (const loop of here.polygons) {
        loop.forEach(([x, y], n) => (n ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        pen.closePath();
      }
      pen.lineWidth = Math.max(1.5, columns / 300);
      pen.strokeStyle = finding.colour;
      pen.stroke();
      const axes = finding.axes.filter(each => each.image === shown);
      for (const { ends_xy: [start, end] } of axes) {
        pen.beginPath();
        pen.moveTo(...start);
        pen.lineTo(...end);
        pen.lineWidth = Math.max(1, columns / 450);
        pen.strokeStyle = CALIPER;
        pen.stroke();
      }
      drawn.push({ label: finding.label, polygons: here.polygons, axes });
    }
    state.drawn = drawn;
    slider.value = shown;
    const marked = drawn.map(each => each.label).join(', ');
    where.textContent = `${name} · ${t('{n} of {all}', { n: shown + 1, all: told.frames.length })}${marked ? ` · ${marked}` : ''}`;
    root.dataset.frame = shown;
  };

  /** The next frame of the clip that this one is of; behind its last comes its first. */
  const following = () => {
    const uid = told.frames[state.frame].sop_instance_uid, next = state.frame + 1;
    if (next < told.frames.length && told.frames[next].sop_instance_uid === uid) return next;
    return told.frames.findIndex(each => each.sop_instance_uid === uid);
  };

  const play = on => {
    state.plays = on;
    root.dataset.plays = on;
    playing.textContent = on ? t('Pause') : t('Play');
    playing.setAttribute('aria-pressed', on);
    clearTimeout(clock);
    const go = async () => {
      const began = performance.now();
      await show(following());
      if (state.plays) clock = setTimeout(go, Math.max(0, told.frame_ms - (performance.now() - began)));
    };
    if (on) clock = setTimeout(go, told.frame_ms);
  };

  const turn = by => { play(false); show(state.frame + by); };
  const choose = by => {
    if (!told.outlines.length) return;
    play(false);
    state.finding = (state.finding + by + told.outlines.length) % told.outlines.length;
    show(told.outlines[state.finding].key_image);
  };
  const outlines = () => {
    state.outlines = !state.outlines;
    outlining.setAttribute('aria-pressed', state.outlines);
    show(state.frame);
  };

  const KEYS = {
    ' ': () => play(!state.plays), ArrowRight: () => turn(1), ArrowUp: () => turn(1), ArrowLeft: () => turn(-1),
    ArrowDown: () => turn(-1), Home: () => turn(-state.frame), End: () => turn(-state.frame - 1),
    n: () => choose(1), p: () => choose(-1), o: outlines,
  };

  const begin = async () => {
    told = await asked();
    if (told.state !== 'ready') {
      say(told.why.replace(/^./, first => first.toUpperCase()) + '.');
      root.dataset.state = 'refused';
      return;
    }
    say(t('The clip is on its way …'));
    const answer = await fetch(`${api}/view/cine.bin`);
    if (!answer.ok) throw new Error(t('the node answers {status}', { status: answer.status }));
    film = new Uint8Array(await answer.arrayBuffer());
    slider.max = told.frames.length - 1;
    slider.addEventListener('input', () => turn(Number(slider.value) - state.frame));
    playing.addEventListener('click', () => play(!state.plays));
    outlining.addEventListener('click', outlines);
    canvas.addEventListener('keydown', event => {
      const act = !event.ctrlKey && !event.altKey && !event.metaKey && KEYS[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    for (const row of document.querySelectorAll('[data-goes-to]')) {
      const [job, number] = row.dataset.goesTo.split(' ');
      const index = told.outlines.findIndex(each => each.job === job && each.number === Number(number));
      if (index < 0) continue;
      row.hidden = false;
      row.addEventListener('click', () => { state.finding = index - 1; choose(1); canvas.focus(); });
    }
    say('');
    if (told.outlines.length) choose(1); else await show(0);
    root.player = { state, told, show, play };
    root.dataset.state = 'ready';
  };

  root.hidden = false;
  begin().catch(error => { say(t('The clip cannot be shown: {why}', { why: error.message })); root.dataset.state = 'failed'; });
})();
