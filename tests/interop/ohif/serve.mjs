// OHIF's built pages, and Orthanc's DICOMweb beside them: one origin, as an administrator would publish them.
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const DIST = fileURLToPath(new URL('node_modules/@ohif/app/dist', import.meta.url));
const TYPES = {
  '.css': 'text/css', '.html': 'text/html', '.js': 'text/javascript', '.json': 'application/json',
  '.svg': 'image/svg+xml', '.wasm': 'application/wasm',
};
const CONFIGURATION = `window.config = {
  routerBasename: '/', extensions: [], modes: [], showStudyList: true, showErrorDetails: 'always',
  investigationalUseDialog: { option: 'never' },
  defaultDataSourceName: 'pacs',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'pacs',
    configuration: {
      friendlyName: 'PACS', name: 'pacs', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: true,
      omitQuotationForMultipartRequest: true, bulkDataURI: { enabled: true },
    },
  }],
};`;

/** Start on a free port of loopback; the address, with its slash at the end. */
export async function serve(orthanc) {
  const server = http.createServer((request, response) => {
    const { pathname } = new URL(request.url, 'http://viewer');
    if (pathname.startsWith('/dicom-web/')) {
      // Orthanc writes the addresses of bulk data with the host it is told
      const headers = { ...request.headers, forwarded: `host=${request.headers.host};proto=http` };
      const passed = http.request(new URL(request.url, orthanc), { method: request.method, headers }, answer => {
        response.writeHead(answer.statusCode, answer.headers);
        answer.pipe(response);
      });
      passed.on('error', error => response.writeHead(502).end(String(error)));
      request.pipe(passed);
      return;
    }
    if (pathname === '/app-config.js') {
      response.writeHead(200, { 'content-type': TYPES['.js'] }).end(CONFIGURATION);
      return;
    }
    let file = path.join(DIST, path.normalize(pathname));
    if (!fs.statSync(file, { throwIfNoEntry: false })?.isFile()) file = path.join(DIST, 'index.html'); // its own router
    response.writeHead(200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream' });
    fs.createReadStream(file).pipe(response);
  });
  await new Promise(ready => server.listen(0, '127.0.0.1', ready));
  return `http://127.0.0.1:${server.address().port}/`;
}
