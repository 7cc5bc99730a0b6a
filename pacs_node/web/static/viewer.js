// The viewer of a series: slices, their planes and a view in depth, by NiiVue; what was found is drawn over them here.
//
// Every place comes from the node in millimetres (RAS+) and goes through NiiVue's own matrices to the screen, and so do
// the letters at the edges: nothing here assumes which way an image lies. Nothing is loaded but from the node.
(() => {
  'use strict';
  const root = document.getElementById('viewer');
  if (!root) return;
  const api = `/api/series/${root.dataset.uid}`;
  /** A text of ours in the language of the page, with what stands in its braces. */
  const translated = JSON.parse(root.dataset.words || '{}');
  const t = (text, values = {}) => (translated[text] || text).replace(/{(\w+)}/g, (all, name) => values[name] ?? all);
  const stage = root.querySelector('.stage');
  const [canvas, over] = stage.querySelectorAll('canvas');
  const words = root.querySelector('.words');
  const where = root.querySelector('.where');
  const slider = root.querySelector('input[type=range]');
  const pen = over.getContext('2d');

  const AXIAL = 0, CORONAL = 1, SAGITTAL = 2, ALL = 3, DEPTH = 4; // NiiVue's SLICE_TYPE
  const VIEWS = [['Axial', AXIAL], ['Coronal', CORONAL], ['Sagittal', SAGITTAL], ['All', ALL], ['3-D', DEPTH]];
  const SHOWN = { // what is called so, here and by the node, as the page says it
    Axial: t('Axial'), Coronal: t('Coronal'), Sagittal: t('Sagittal'), All: t('All'), '3-D': t('3-D'),
    Lung: t('Lung'), Mediastinum: t('Mediastinum'), Bone: t('Bone'), Image: t('Image'),
  };
  const ACROSS = { [AXIAL]: [0, 1, 2], [CORONAL]: [0, 2, 1], [SAGITTAL]: [1, 2, 0] }; // axes on the screen, then through it
  const LETTERS = [['R', 'L'], ['A', 'P'], ['H', 'F']]; // towards + and - of x, y and z in RAS+, as DICOM has them
  // the surface of what holds air, for the view in depth: seen where HU are between lung and soft tissue
  const LUNGS = { low: -750, high: -200, R: [0, 110, 0], G: [0, 190, 0], B: [0, 210, 0], A: [0, 90, 0], I: [0, 128, 255] };
  const ZOOMS = 1.25;
  const CALIPER = '#ff0'; // as the captures have it

  const OPTIONS = {
    isRadiologicalConvention: true, // the patient's right is on the left, as radiologists have it
    isOrientationTextVisible: false, // ours, which also say A, P, H and F as DICOM does
    multiplanarShowRender: 0,
    isColorbar: false,
    dragAndDropEnabled: false,
    crosshairWidth: 0.6,
    crosshairColor: [0.3, 0.75, 0.85, 0.7],
    backColor: [0, 0, 0, 1],
    loadingText: '',
    logLevel: 'error',
    clipPlaneHotKey: '',
    viewModeHotKey: '',
  };

  // where something is drawn: the series itself, and beside it the earlier study
  const main = { get nv() { return nv; }, pen, over, get findings() { return state.findings; } };
  const state = { view: AXIAL, window: 0, finding: -1, outlines: true, findings: [], volume: null, zoom: 1, earlier: null };
  let nv;

  const say = text => { words.textContent = text; words.hidden = !text; };
  const asked = async address => {
    const answer = await fetch(address, { headers: { accept: 'application/json' } });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error || t('the node answers {status}', { status: answer.status }));
    return told;
  };
  /** As soon as the node has made it; it is asked again while it makes it. */
  const made = async address => {
    for (;;) {
      const told = await asked(address);
      if (told.state !== 'preparing') return told;
      say(t('The node prepares the images …'));
      await new Promise(done => setTimeout(done, 700));
    }
  };

  // ---- places

  const through = (matrix, [x, y, z]) => matrix.slice(0, 3).map(row => row[0] * x + row[1] * y + row[2] * z + row[3]);
  const frac = (mm, on = main) => on.nv.mm2frac(mm, 0, true); // true: real millimetres, of tilted stacks, too
  const millimetres = (at, on = main) => Array.from(on.nv.frac2mm(at, 0, true)).slice(0, 3);
  const length = (axis, on = main) => on.nv.volumes[0].dimsRAS[axis + 1];
  const plane = () => (state.view in ACROSS ? state.view : AXIAL);
  const slice = (axis, on = main) =>
    Math.min(length(axis, on) - 1, Math.max(0, Math.round(on.nv.scene.crosshairPos[axis] * length(axis, on) - 0.5)));
  const voxel = () => through(state.volume.voxel_of_ras_mm, millimetres(nv.scene.crosshairPos));

  /** Smallest and largest fraction of the volume on each axis that a finding takes. */
  const extent = (finding, on) => {
    const [a, b] = finding.corners_ras_mm.map(mm => frac(mm, on));
    return [[0, 1, 2].map(n => Math.min(a[n], b[n])), [0, 1, 2].map(n => Math.max(a[n], b[n]))];
  };

  const goTo = at => { nv.scene.crosshairPos = at; nv.createOnLocationChange(); nv.drawScene(); };
  const turn = by => {
    const axis = ACROSS[plane()][2];
    const at = Array.from(nv.scene.crosshairPos);
    at[axis] = (Math.min(length(axis) - 1, Math.max(0, slice(axis) + by)) + 0.5) / length(axis);
    goTo(at);
  };

  const choose = index => {
    const { findings } = state;
    if (!findings.length) return;
    state.finding = (index + findings.length) % findings.length;
    const { first_zyx: a, last_zyx: b, key_image: z } = findings[state.finding];
    const middle = a ? [(a[2] + b[2]) / 2, (a[1] + b[1]) / 2, z] : [...voxel().slice(0, 2), z];
    if (state.view === DEPTH) show(AXIAL);
    goTo(frac(through(state.volume.affine_ras_mm, middle)));
    pressed();
  };

  // ---- what is drawn over the slices

  const draw = () => {
    if (!nv || !nv.volumes.length) return;
    state.drawn = drawOver(main, canvas);
    position();
    follow();
  };

  const drawOver = (on, under) => {
    if (on.over.width !== under.width || on.over.height !== under.height) {
      on.over.width = under.width;
      on.over.height = under.height;
    }
    on.pen.clearRect(0, 0, on.over.width, on.over.height);
    const scale = on.over.width / Math.max(1, on.over.clientWidth);
    const drawn = [];
    for (const tile of on.nv.screenSlices) {
      if (!(tile.axCorSag in ACROSS)) continue;
      letters(tile, scale, on);
      if (state.outlines) for (const finding of on.findings) drawn.push(box(tile, finding, scale, on));
    }
    return drawn.filter(Boolean);
  };

  const onTile = (tile, at, on) => {
    const place = on.nv.frac2canvasPosWithTile(at, tile.axCorSag);
    return place && place.pos;
  };

  /** A rectangle round a finding on a slice that it is on, with its name, its certainty and its size. */
  const box = (tile, finding, scale, on) => {
    const { nv, pen } = on;
    if (!finding.corners_ras_mm) return null;
    const [low, high] = extent(finding, on);
    const [across, down, depth] = ACROSS[tile.axCorSag];
    const here = nv.scene.crosshairPos[depth];
    if (here < low[depth] || here > high[depth]) return null;
    const corner = from => {
      const at = Array.from(nv.scene.crosshairPos);
      at[across] = from[across];
      at[down] = from[down];
      return onTile(tile, at, on);
    };
    const [one, other] = [corner(low), corner(high)];
    if (!one || !other) return null; // beyond what is shown
    const outlined = outline(finding, [across, down, depth], [low, high], [one, other], scale, on);
    const gap = 3 * scale;
    const left = Math.min(one[0], other[0]) - gap, top = Math.min(one[1], other[1]) - gap;
    const right = Math.max(one[0], other[0]) + gap, bottom = Math.max(one[1], other[1]) + gap;
    pen.lineWidth = (state.findings[state.finding] === finding ? 2.5 : 1.2) * scale;
    pen.strokeStyle = finding.colour;
    if (finding.extent === 'box') pen.setLineDash([]); else pen.setLineDash([4 * scale, 3 * scale]);
    pen.strokeRect(left, top, right - left, bottom - top);
    pen.setLineDash([]);
    const measured = axes(tile, finding, depth, scale, on);
    const text = [finding.label, finding.certainty_percent === null ? '' : `${finding.certainty_percent} %`, finding.size]
      .filter(Boolean).join(' · ');
    pen.font = `600 ${13 * scale}px system-ui, sans-serif`;
    const wide = pen.measureText(text).width;
    const [l, t, w] = tile.leftTopWidthHeight;
    const x = Math.max(l + gap, Math.min(left, l + Math.abs(w) - wide - gap));
    const y = top - 6 * scale > t + 14 * scale ? top - 6 * scale : bottom + 15 * scale;
    pen.lineWidth = 3 * scale;
    pen.strokeStyle = '#000';
    pen.strokeText(text, x, y);
    pen.fillStyle = finding.colour;
    pen.fillText(text, x, y);
    return { plane: tile.axCorSag, label: finding.label, box: [left, top, right, bottom], outlined, axes: measured, text };
  };

  /** The lines that its axes were measured along, on the slice that they lie on; where on the screen that is. */
  const axes = (tile, finding, depth, scale, on) => {
    const drawn = [];
    for (const { name, ends_ras_mm } of finding.axes) {
      const ends = ends_ras_mm.map(mm => Array.from(frac(mm, on)));
      if (ends.some(at => Math.round(at[depth] * length(depth, on) - 0.5) !== slice(depth, on))) continue;
      for (const at of ends) at[depth] = on.nv.scene.crosshairPos[depth];
      const [start, end] = ends.map(at => onTile(tile, at, on));
      if (!start || !end) continue; // beyond what is shown
      for (const [colour, wide] of [['#000', 3], [CALIPER, 1.2]]) {
        on.pen.beginPath();
        on.pen.moveTo(start[0], start[1]);
        on.pen.lineTo(end[0], end[1]);
        on.pen.lineWidth = wide * scale;
        on.pen.strokeStyle = colour;
        on.pen.stroke();
      }
      drawn.push({ name, ends: [start.slice(0, 2), end.slice(0, 2)] });
    }
    return drawn;
  };

  /** Along the edges of the voxels of its mask on this slice; where on the screen that is, or nothing. */
  const outline = (finding, [across, down, depth], [low, high], [one, other], scale, on) => {
    const { nv, pen } = on;
    const masks = nv.volumes[1];
    if (!masks || !finding.mask) return null;
    const [from, to] = [low, high].map(at => [across, down].map(axis => Math.round(at[axis] * length(axis, on))));
    const at = [0, 0, 0];
    at[depth] = slice(depth, on);
    const inside = (i, j) => {
      if (i < from[0] || j < from[1] || i >= to[0] || j >= to[1]) return false;
      at[across] = i;
      at[down] = j;
      return masks.getValue(...at) === finding.mask;
    };
    const x = i => one[0] + ((i - from[0]) / (to[0] - from[0])) * (other[0] - one[0]);
    const y = j => one[1] + ((j - from[1]) / (to[1] - from[1])) * (other[1] - one[1]);
    const seen = [Infinity, Infinity, -Infinity, -Infinity];
    pen.beginPath();
    for (let i = from[0]; i <= to[0]; i++) {
      for (let j = from[1]; j <= to[1]; j++) {
        const here = inside(i, j);
        if (here) {
          seen[0] = Math.min(seen[0], x(i), x(i + 1));
          seen[1] = Math.min(seen[1], y(j), y(j + 1));
          seen[2] = Math.max(seen[2], x(i), x(i + 1));
          seen[3] = Math.max(seen[3], y(j), y(j + 1));
        }
        if (here !== inside(i - 1, j)) { pen.moveTo(x(i), y(j)); pen.lineTo(x(i), y(j + 1)); }
        if (here !== inside(i, j - 1)) { pen.moveTo(x(i), y(j)); pen.lineTo(x(i + 1), y(j)); }
      }
    }
    pen.lineWidth = 1.6 * scale;
    pen.strokeStyle = finding.colour;
    pen.stroke();
    return Number.isFinite(seen[0]) ? seen : null;
  };

  /** Towards where in the patient the edges of a slice are: told by what one step on each axis does to both. */
  const letters = (tile, scale, on) => {
    const { nv, pen } = on;
    const at = Array.from(nv.scene.crosshairPos, each => Math.min(0.7, Math.max(0.3, each)));
    const depth = ACROSS[tile.axCorSag][2];
    at[depth] = nv.scene.crosshairPos[depth];
    const start = onTile(tile, at, on), here = millimetres(at, on);
    if (!start) return;
    const [left, top, w, h] = tile.leftTopWidthHeight, wide = Math.abs(w), tall = Math.abs(h), gap = 12 * scale;
    pen.font = `700 ${15 * scale}px system-ui, sans-serif`;
    pen.textAlign = 'center';
    pen.textBaseline = 'middle';
    tile.letters = {};
    for (const axis of ACROSS[tile.axCorSag].slice(0, 2)) {
      const step = at.slice();
      step[axis] += 0.1;
      const end = onTile(tile, step, on), there = millimetres(step, on);
      if (!end) continue;
      const moved = there.map((mm, n) => mm - here[n]);
      const main = moved.reduce((best, mm, n) => (Math.abs(mm) > Math.abs(moved[best]) ? n : best), 0);
      const [towards, away] = moved[main] > 0 ? LETTERS[main] : LETTERS[main].slice().reverse();
      const sideways = Math.abs(end[0] - start[0]) > Math.abs(end[1] - start[1]);
      const grows = sideways ? end[0] > start[0] : end[1] > start[1];
      const [first, last] = grows ? [away, towards] : [towards, away];
      const places = sideways
        ? [[left + gap, top + tall / 2, first], [left + wide - gap, top + tall / 2, last]]
        : [[left + wide / 2, top + gap, first], [left + wide / 2, top + tall - gap, last]];
      Object.assign(tile.letters, sideways ? { left: first, right: last } : { top: first, bottom: last });
      for (const [x, y, letter] of places) {
        pen.lineWidth = 3 * scale;
        pen.strokeStyle = '#000';
        pen.strokeText(letter, x, y);
        pen.fillStyle = '#fff';
        pen.fillText(letter, x, y);
      }
    }
    pen.textAlign = 'start';
    pen.textBaseline = 'alphabetic';
  };

  /** In words, for who does not see the picture, and for the form that says where one was missed. */
  const position = () => {
    const axis = ACROSS[plane()][2], number = slice(axis);
    slider.max = length(axis) - 1;
    slider.value = number;
    const [x, y, z] = voxel().map(Math.round);
    const [r, a, s] = millimetres(nv.scene.crosshairPos);
    const inside = x >= 0 && y >= 0 && z >= 0 && x < state.volume.size_xyz[0] && y < state.volume.size_xyz[1] && z < state.volume.size_xyz[2];
    const value = inside ? nv.volumes[0].img[x + state.volume.size_xyz[0] * (y + state.volume.size_xyz[1] * z)] : NaN;
    const name = SHOWN[VIEWS.find(([, view]) => view === plane())[0]].toLowerCase();
    where.textContent =
      `${name} ${t('{n} of {all}', { n: number + 1, all: length(axis) })} · ` +
      `${Math.abs(r).toFixed(1)} mm ${r > 0 ? 'R' : 'L'}, ${Math.abs(a).toFixed(1)} mm ${a > 0 ? 'A' : 'P'}, ` +
      `${Math.abs(s).toFixed(1)} mm ${s > 0 ? 'H' : 'F'}` +
      (Number.isFinite(value) ? ` · ${state.volume.unit ? `${Math.round(value)} ${state.volume.unit}` : value.toPrecision(4)}` : '');
    for (const form of document.querySelectorAll('form.missed')) {
      if (!inside || form.contains(document.activeElement)) continue;
      form.elements.image.value = z + 1;
      form.elements.column.value = x;
      form.elements.row.value = y;
    }
  };

  // ---- the earlier study, beside it

  /** Its slices are those through the same place of the patient: by the registration, on its own grid. */
  const follow = () => {
    const { earlier } = state;
    if (!earlier) return;
    const at = Array.from(frac(through(earlier.told.to_earlier_ras, millimetres(nv.scene.crosshairPos)), earlier));
    const beyond = at.some(each => each < 0 || each > 1);
    earlier.nv.scene.crosshairPos = at.map(each => Math.min(1, Math.max(0, each)));
    earlier.nv.drawScene();
    earlier.drawn = drawOver(earlier, earlier.canvas);
    const { days, residual_mm } = earlier.told;
    earlier.where.textContent = t('Earlier study, {days} days before; registered, lungs {mm} mm apart on average', { days, mm: residual_mm })
      + (beyond ? ` · ${t('this place is beyond what it shows')}` : '');
    root.dataset.beyond = beyond;
  };

  const compare = async () => {
    if (state.earlier) {
      state.earlier.nv.gl.getExtension('WEBGL_lose_context')?.loseContext();
      state.earlier.stage.remove();
      state.earlier.where.remove();
      state.earlier = null;
      root.dataset.earlier = '';
      stage.parentElement.classList.remove('pair');
      pressed();
      nv.resizeListener();
      return;
    }
    const told = await made(`${api}/earlier`);
    if (told.state !== 'ready') { say(told.why.replace(/^./, first => first.toUpperCase()) + '.'); return; }
    say(t('The earlier study is on its way …'));
    const beside = stage.cloneNode(true), words_ = document.createElement('p');
    const [under, above] = beside.querySelectorAll('canvas');
    under.removeAttribute('tabindex');
    under.setAttribute('aria-label', t('The earlier study at the same place'));
    words_.className = 'meta';
    stage.after(beside, words_);
    stage.parentElement.classList.add('pair');
    const own = new niivue.Niivue({ ...OPTIONS, crosshairColor: [0.95, 0.75, 0.3, 0.7] });
    own.addColormap('lungs', LUNGS);
    own.loadDefaultFont = async () => {};
    own.loadDefaultMatCap = async () => null;
    await own.attachToCanvas(under, false);
    await own.loadVolumes([
      { url: `${api}/view/earlier.nii.gz`, name: 'volume.nii.gz' },
      ...(told.labels.length ? [{ url: `${api}/view/earlier-masks.nii.gz`, name: 'masks.nii.gz' }] : []),
    ]);
    if (own.volumes[1]) own.volumes[1].setColormapLabel(colours(told.labels));
    state.earlier = {
      nv: own, pen: above.getContext('2d'), over: above, canvas: under, stage: beside, where: words_, told,
      findings: told.findings, drawn: [],
    };
    nv.resizeListener();
    own.resizeListener();
    say('');
    look();
    show(state.view);
    nv.drawScene();
    root.dataset.earlier = 'shown';
    pressed();
  };

  // ---- what is shown

  const look = () => {
    lookAt(main);
    if (state.earlier) lookAt(state.earlier);
  };
  const lookAt = ({ nv }) => {
    const image = nv.volumes[0], { centre, width } = state.volume.windows[state.window];
    const deep = state.view === DEPTH && state.volume.unit === 'HU';
    image.colormap = deep ? 'lungs' : 'gray';
    image.cal_min = deep ? LUNGS.low : centre - width / 2;
    image.cal_max = deep ? LUNGS.high : centre + width / 2;
    if (nv.volumes[1]) nv.volumes[1].opacity = state.outlines && state.view === DEPTH ? 1 : 0; // else outlines, by us
    nv.updateGLVolume();
  };
  const show = view => {
    const before = state.view;
    state.view = view;
    nv.opts.isOrientCube = view === DEPTH; // which says there what the letters say on slices
    if (before === DEPTH || view === DEPTH) look();
    nv.setSliceType(view);
    if (state.earlier) {
      state.earlier.nv.opts.isOrientCube = view === DEPTH;
      state.earlier.nv.setSliceType(view);
    }
    slider.disabled = view === DEPTH;
    pressed();
  };
  const throughWindow = index => {
    state.window = (index + state.volume.windows.length) % state.volume.windows.length;
    look();
    nv.drawScene();
    pressed();
  };
  const zoom = factor => {
    state.zoom = factor ? Math.min(20, Math.max(1, state.zoom * factor)) : 1;
    if (state.earlier && state.view !== DEPTH) state.earlier.nv.setPan2Dxyzmm([0, 0, 0, state.zoom]);
    if (state.view === DEPTH) nv.setScale(state.zoom);
    else nv.setPan2Dxyzmm([...(factor ? nv.scene.pan2Dxyzmm.slice(0, 3) : [0, 0, 0]), state.zoom]);
  };
  const outlines = () => { state.outlines = !state.outlines; look(); nv.drawScene(); pressed(); };
  const whole = () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen());

  // ---- buttons and keys

  const buttons = [];
  const button = (group, text, key, act, on = () => false) => {
    const made = document.createElement('button');
    made.type = 'button';
    made.textContent = text;
    if (key) made.title = t('key {key}', { key });
    made.addEventListener('click', act);
    root.querySelector(`.${group}`).append(made);
    buttons.push([made, on]);
  };
  const pressed = () => {
    for (const [each, on] of buttons) each.setAttribute('aria-pressed', String(Boolean(on())));
    root.dataset.view = VIEWS.find(([, view]) => view === state.view)[0];
    root.dataset.finding = state.finding < 0 ? '' : state.findings[state.finding].label;
    for (const row of document.querySelectorAll('[data-goes-to]')) {
      const [job, number] = row.dataset.goesTo.split(' ');
      const chosen = state.findings[state.finding];
      row.classList.toggle('chosen', Boolean(chosen && chosen.job === job && chosen.number === Number(number)));
    }
  };
  const KEYS = {
    ArrowUp: () => turn(1), ArrowDown: () => turn(-1), PageUp: () => turn(10), PageDown: () => turn(-10),
    Home: () => turn(length(ACROSS[plane()][2])), End: () => turn(-length(ACROSS[plane()][2])),
    n: () => choose(state.finding + 1), p: () => choose(state.finding - 1), w: () => throughWindow(state.window + 1),
    v: () => show((state.view + 1) % VIEWS.length), o: outlines, f: whole, e: () => state.comparable && compare(),
    '+': () => zoom(ZOOMS), '-': () => zoom(1 / ZOOMS), 0: () => zoom(0),
  };

  const furnish = () => {
    for (const [name, view] of VIEWS) button('views', SHOWN[name], 'v', () => show(view), () => state.view === view);
    state.volume.windows.forEach(({ name }, n) => button('windows', SHOWN[name] || name, 'w', () => throughWindow(n), () => state.window === n));
    button('others', t('Outlines'), 'o', outlines, () => state.outlines);
    button('others', '+', '+', () => zoom(ZOOMS));
    button('others', '−', '-', () => zoom(1 / ZOOMS));
    if (state.comparable) button('others', t('Earlier study'), 'e', compare, () => Boolean(state.earlier));
    button('others', t('Full screen'), 'f', whole, () => document.fullscreenElement === root);
    stage.addEventListener('keydown', event => {
      const act = !event.ctrlKey && !event.altKey && !event.metaKey && KEYS[event.key];
      if (!act) return;
      event.preventDefault();
      event.stopPropagation(); // before NiiVue, which has keys of its own
      act();
    }, true);
    slider.addEventListener('input', () => turn(Number(slider.value) - slice(ACROSS[plane()][2])));
    slider.hidden = false;
    for (const row of document.querySelectorAll('[data-goes-to]')) {
      const [job, number] = row.dataset.goesTo.split(' ');
      const index = state.findings.findIndex(each => each.job === job && each.number === Number(number));
      if (index < 0) continue;
      row.hidden = false;
      row.addEventListener('click', () => { choose(index); stage.scrollIntoView({ block: 'nearest' }); canvas.focus(); });
    }
    document.addEventListener('fullscreenchange', () => { pressed(); nv.resizeListener(); });
  };

  const colours = labels => {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [''] };
    for (const { value, label, colour } of labels) {
      const [r, g, b] = [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16));
      table.R.push(r);
      table.G.push(g);
      table.B.push(b);
      table.A.push(255);
      table.I.push(value);
      table.labels.push(label);
    }
    return table;
  };

  const begin = async () => {
    if (!document.createElement('canvas').getContext('webgl2')) {
      say(t('This browser has no WebGL 2, which the viewer needs. The pictures of the findings are below.'));
      return;
    }
    const told = await made(`${api}/findings?shadow=1`);
    if (root.dataset.findings === 'preparing') {
      location.reload(); // the table below has them now
      return;
    }
    state.volume = await made(`${api}/view`);
    if (state.volume.state !== 'ready') {
      say(state.volume.why.replace(/^./, first => first.toUpperCase()) + '.');
      root.dataset.state = 'refused';
      return;
    }
    state.findings = (told.results || []).flatMap(result => result.findings.map(each => ({ ...each, job: result.job })));
    state.comparable = (told.results || []).some(result => result.compared_with);
    say(t('The images are on their way …'));
    nv = new niivue.Niivue(OPTIONS);
    nv.addColormap('lungs', LUNGS);
    nv.loadDefaultFont = async () => {}; // a picture in the code, which the page may not load; nothing is written with it
    nv.loadDefaultMatCap = async () => null; // as above; it shades meshes, and there are none
    await nv.attachToCanvas(canvas, false);
    await nv.loadVolumes([
      { url: `${api}/view/volume.nii.gz`, name: 'volume.nii.gz' },
      ...(state.volume.labels.length ? [{ url: `${api}/view/masks.nii.gz`, name: 'masks.nii.gz' }] : []),
    ]);
    if (nv.volumes[1]) nv.volumes[1].setColormapLabel(colours(state.volume.labels));
    const scene = nv.drawScene.bind(nv);
    nv.drawScene = () => { const said = scene(); draw(); return said; };
    nv.setDragMode('windowing'); // with the right button; else the wheel would zoom
    nv.setRenderAzimuthElevation(160, 15); // from the front
    furnish();
    look();
    show(AXIAL);
    if (state.findings.length) choose(0); else nv.drawScene();
    say(state.volume.remarks.join(' '));
    root.viewer = { nv, state, turn, show, choose, voxel, millimetres, compare };
    root.dataset.state = 'ready';
  };

  const start = () => begin().catch(error => { say(t('The viewer cannot show this: {why}', { why: error.message })); root.dataset.state = 'failed'; });

  root.hidden = false;
  if (root.dataset.begin !== 'asked') {
    start();
  } else { // on the page of a series: a volume is large, and who reads of its jobs does not want it
    const ask = document.createElement('button');
    ask.type = 'button';
    ask.textContent = t('Show the images');
    ask.addEventListener('click', () => { ask.remove(); root.dataset.begin = 'now'; start(); });
    root.prepend(ask);
  }
})();
