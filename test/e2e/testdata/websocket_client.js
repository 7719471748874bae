// messages URL: what an echo server must give back. stay URL: waits to be closed.
const crypto = require("crypto");
const WebSocket = require("ws");

const [mode, url] = process.argv.slice(2);
const ws = new WebSocket(url);
ws.on("error", (e) => { console.log("error", e.message); process.exit(1); });
ws.on("close", (code, reason) => console.log("closed", code, reason.toString()));

if (mode === "stay") {
  ws.on("open", () => ws.send("hello"));
  ws.on("message", () => console.log("ready"));
} else {
  const sent = [0, 1, 125, 126, 127, 65535, 65536, 1 << 20].map((n) => crypto.randomBytes(n));
  sent.push(Buffer.concat([Buffer.from("in "), Buffer.from("three "), Buffer.from("pieces")]));
  let next = 0;
  ws.on("open", () => {
    sent.slice(0, -1).forEach((m) => ws.send(m));
    ws.send("in ", { fin: false, binary: true });
    ws.ping("between the pieces");
    ws.send("three ", { fin: false, binary: true });
    ws.send("pieces", { fin: true, binary: true });
  });
  ws.on("message", (m) => {
    if (!m.equals(sent[next])) { console.log("wrong", next); process.exit(1); }
    if (++next === sent.length) { console.log("good"); ws.close(1000); }
  });
}
