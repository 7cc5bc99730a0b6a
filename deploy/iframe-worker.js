// Search on pages opened as files: browsers start no Worker from there, so that of the search runs in a frame of its own.
// Only what the theme's search asks of a Worker: one script, messages there and back.
(() => {
  'use strict';
  if (location.protocol !== 'file:') return;
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement('iframe');
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', { data }));
      const script = frame.contentDocument.createElement('script');
      this.ready = new Promise(done => script.addEventListener('load', done));
      script.src = address;
      frame.contentDocument.body.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent('message', { data })));
    }
  };
})();
