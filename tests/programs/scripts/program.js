// A server of node with a worker thread and a timer; it says how often it was asked.
const { createServer } = require("net");
const { Worker } = require("worker_threads");
const worker = new Worker(
  'const { parentPort } = require("worker_threads"); parentPort.on("message", (n) => parentPort.postMessage(n + 1));',
  { eval: true },
);
let count = 0;
let ticks = 0;
const kept = Buffer.alloc(32 << 20, "kept");
setInterval(() => ticks++, 50);
createServer((socket) => {
  worker.once("message", (n) => {
    count = n;
    socket.end(kept[1 << 20] === 107 && ticks > 0 ? String(count) : "wrong");
  });
  worker.postMessage(count);
}).listen(Number(process.env.PORT), "127.0.0.1");
