// A web app for wasi:http 0.2 in JavaScript.
//
//   /         which pod and node answered, and the number of this instance's requests to `/`
//   /headers  the request's headers as JSON
//   else      404
//
// It exports the handler itself. The other way, `addEventListener('fetch', …)`, makes components that
// whose instances answer one request each; the node finds that out, see docs/guests.md.

import { getEnvironment } from 'wasi:cli/environment@0.2.12';
import { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } from 'wasi:http/types@0.2.12';

// Longest write that `blocking-write-and-flush` takes, in bytes.
const WRITE_BYTES_MAX = 4096;
const TEXT = 'text/plain; charset=utf-8';

const encoder = new TextEncoder();
const decoder = new TextDecoder();
let requests = 0;

export const incomingHandler = {
  handle(request, out) {
    const path = (request.pathWithQuery() ?? '/').split('?')[0];
    const { status, type, text } = answer(path, request);
    const headers = Fields.fromList([['content-type', encoder.encode(type)]]);
    const response = new OutgoingResponse(headers);
    response.setStatusCode(status);
    const body = response.body();
    ResponseOutparam.set(out, { tag: 'ok', val: response });

    const stream = body.write();
    const bytes = encoder.encode(text);
    for (let start = 0; start < bytes.length; start += WRITE_BYTES_MAX) {
      stream.blockingWriteAndFlush(bytes.subarray(start, start + WRITE_BYTES_MAX));
    }
    // The stream is a child of the body, and has to go before the body is finished.
    stream[Symbol.dispose]();
    OutgoingBody.finish(body, undefined);
  },
};

function answer(path, request) {
  switch (path) {
    case '/': {
      requests += 1;
      const environment = new Map(getEnvironment());
      const pod = environment.get('POD_NAME') ?? 'unknown';
      const node = environment.get('NODE_NAME') ?? 'unknown';
      console.log(`request ${requests}`);
      const text = `Hello from JavaScript in pod ${pod} on node ${node}, request ${requests}\n`;
      return { status: 200, type: TEXT, text };
    }
    case '/headers': {
      const entries = request.headers().entries();
      const headers = Object.fromEntries(entries.map(([name, value]) => [name, decoder.decode(value)]));
      return { status: 200, type: 'application/json', text: `${JSON.stringify(headers)}\n` };
    }
    default:
      return { status: 404, type: TEXT, text: 'not found\n' };
  }
}
