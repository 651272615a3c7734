#!/usr/bin/env node
// A client of pfsd in Node.js, without packages: run it, or copy from it. docs/protocol.md explains the wire.
'use strict';
const { once } = require('node:events');
const fs = require('node:fs/promises');
const net = require('node:net');

const problem = (code, message) => Object.assign(new Error(`${code}: ${message}`), { code });
// Any bytes as a quoted word, which is always a name. Of FILEs only plain digits are not quoted: they are an id.
const escape = (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`;
const quote = (name) => `"${Buffer.from(name).toString('latin1').replace(/[^ !#-[\]-~]/g, escape)}"`;
const file = (word) => (/^[0-9]+$/.test(word) ? word : quote(word));
// The key=value pairs of a reply line. Lines are latin1, in which each byte is a character; values are bytes again.
function fields(line) {
  const named = { n: '\n', r: '\r', t: '\t' };
  const unescape = (_, hex, char) => (hex ? String.fromCharCode(parseInt(hex, 16)) : named[char] ?? char);
  return Object.fromEntries(Array.from(line.matchAll(/([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^ ]*))/g),
    ([, key, quoted, bare]) => [key, Buffer.from(bare ?? quoted.replace(/\\(?:x(..)|(.))/g, unescape), 'latin1')]));
}
// What is in a local file. The daemon counts: a byte more would be taken for a request, one less would be waited for.
async function* content(path, handle, size) {
  for await (const piece of handle.createReadStream()) {
    size -= piece.length;
    if (size >= 0) yield piece;
  }
  if (size !== 0) throw problem('changed', `${path} changed while it was read`);
}

class Pfsd { // a connection; requests run side by side on it, each with a tag
  static async connect(address, token) {
    const [, host, port] = /^\[?(.*?)\]?:([0-9]+)$/.exec(address) ?? []; // or unix:PATH
    const socket = net.connect(port ? { host, port } : { path: address.replace('unix:', '') });
    await once(socket, 'connect').catch((e) => { throw problem('cannot-connect', `${address}: ${e.message}`); });
    const pfsd = Object.assign(new Pfsd(), { socket, calls: new Map(), tags: 0, sent: Promise.resolve() });
    pfsd.over = pfsd.receive().then(() => { throw problem('connection-lost', 'it ended before the answer'); });
    pfsd.over.catch(() => {}); // whoever waits for an answer is told
    if (token) await pfsd.ask(`auth ${quote(token)}`);
    return pfsd;
  }
  // Send a request and its content. Gives the fields of OK or throws ERR; rows go to `row`, content to the file `sink`.
  ask(request, { source = [], row = () => {}, sink } = {}) {
    const tag = `@${++this.tags}`;
    const answer = new Promise((resolve, reject) => this.calls.set(tag, { resolve, reject, row, sink }));
    this.sent = this.sent.then(async () => { // one after the other, and no faster than the daemon takes it
      this.socket.write(`${tag} ${request}\n`);
      for await (const piece of source) // all of it, even when it is refused: the daemon throws it away
        if (!this.socket.write(piece)) await Promise.race([once(this.socket, 'drain'), this.over]);
    }).catch((error) => this.socket.destroy(error));
    return Promise.race([answer, this.over]);
  }
  async receive() {
    let [buffer, frame, call] = [Buffer.alloc(0), 0]; // `frame`: bytes still to come of a DATA frame for `call`
    for await (const chunk of this.socket) {
      buffer = Buffer.concat([buffer, chunk]);
      for (let end; (end = frame ? Math.min(frame, buffer.length) : buffer.indexOf('\n') + 1) > 0;) {
        const taken = buffer.subarray(0, end);
        buffer = buffer.subarray(end);
        if (frame) { frame -= end; await call.sink.writeFile(taken); continue; } // nothing comes in meanwhile
        const [, tag, line, word, what] = /^(?:(@\S+) )?((\S+) ?([^ \n]*).*)\n/.exec(taken.toString('latin1'));
        call = this.calls.get(tag);
        if (word === 'DATA') frame = Number(what);
        else if (word === 'OK') call.resolve({ ...fields(line), line });
        else if (word !== 'ERR') call?.row(line); // of whatever kind: later daemons may have more
        else if (call) call.reject(problem(what, fields(line).message));
        else throw problem(what, fields(line).message); // without a tag it is about the connection
        if (word === 'OK' || word === 'ERR') this.calls.delete(tag);
      }
    }
  }
  async put(path, name, options = '') {
    const handle = await fs.open(path), { size } = await handle.stat();
    return this.ask(`put - name=${quote(name)} size=${size} ${options}`, { source: content(path, handle, size) });
  }
  async get(word, path) { // it appears whole or not at all, and not where something is already
    const partial = `${path}.${process.pid}.partial`, sink = await fs.open(partial, 'wx');
    return this.ask(`get ${file(word)} -`, { sink }).then((answer) => fs.link(partial, path).then(() => answer))
      .finally(() => Promise.all([sink.close(), fs.unlink(partial)]));
  }
}

const USAGE = `pfs.js put FILE NAME [replace=yes] | put-all FILE... | get FILE TARGET | rename FILE NAME [replace=yes]
     | list [PATTERN] | stat FILE | delete FILE... | verify [FILE...]     with PFSD_SERVER and PFSD_TOKEN`;
const EXIT = { usage: 2, 'unknown-command': 2, 'too-long': 2, 'not-found': 4, ENOENT: 4, 'cannot-connect': 5 };
async function main([command, ...words]) {
  if (words.length < ({ put: 2, 'put-all': 1, get: 2, rename: 2 }[command] ?? !command)) throw problem('usage', USAGE);
  const pfsd = await Pfsd.connect(process.env.PFSD_SERVER || '127.0.0.1:7373', process.env.PFSD_TOKEN);
  const row = (line) => process.stdout.write(`${line}\n`, 'latin1'), show = (answer) => row(answer.line);
  const [one, two, ...options] = words;
  if (command === 'put') show(await pfsd.put(one, two, options.join(' ')));
  else if (command === 'put-all') await Promise.all(Array.from({ length: 8 }, async () => { // so many side by side
    for (let path; (path = words.shift()) !== undefined;) show(await pfsd.put(path, path.split('/').pop()));
  }));
  else if (command === 'get') show(await pfsd.get(one, two));
  else if (command === 'rename') show(await pfsd.ask(`rename ${file(one)} ${quote(two)} ${options.join(' ')}`));
  else show(await pfsd.ask([command, ...words.map(file)].join(' '), { row })); // list, stat, delete, verify ...
}
const fail = ({ code, message }) => process.exit(console.error(`pfs: ${message}`) ?? EXIT[code] ?? 1);
process.stdout.on('error', fail);
main(process.argv.slice(2)).then(() => process.exit(0), fail);
