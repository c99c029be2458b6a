// A web app for wasi:http 0.2 in JavaScript.
//
//   /         which pod and node answered, and the how manieth request of this instance it was
//   /headers  the request's headers as JSON
//   /echo     the request's body
//   else      404

import { getEnvironment } from 'wasi:cli/environment@0.2.10';

let requests = 0;

addEventListener('fetch', (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  switch (new URL(request.url).pathname) {
    case '/': {
      requests += 1;
      const environment = new Map(getEnvironment());
      const pod = environment.get('POD_NAME') ?? 'unknown';
      const node = environment.get('NODE_NAME') ?? 'unknown';
      console.log(`request ${requests}`);
      return new Response(
        `Hello from JavaScript in pod ${pod} on node ${node}, request ${requests}\n`,
        { headers: { 'content-type': 'text/plain; charset=utf-8' } },
      );
    }
    case '/headers':
      return Response.json(Object.fromEntries(request.headers));
    case '/echo':
      return new Response(await request.text());
    default:
      return new Response('not found\n', { status: 404 });
  }
}
