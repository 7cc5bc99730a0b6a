// Does what it is told line by line: {"do": "open", ...} on stdin, {"done": ...} or {"error": ...} back, until nobody tells it any more.

import readline from 'node:readline';

/** actions: name -> what is done with the options of a line. ready: what is said first. */
export async function told(actions, ready) {
  console.log(JSON.stringify({ done: ready }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: name, ...options } = JSON.parse(line);
    try {
      console.log(JSON.stringify({ done: (await actions[name](options)) ?? null }));
    } catch (error) {
      console.log(JSON.stringify({ error: String(error.message ?? error) }));
    }
  }
}
