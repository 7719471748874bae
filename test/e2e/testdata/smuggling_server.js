// Answers each request with its method and target, and writes both to a file: PORT FILE.
const fs = require('fs');
const http = require('http');

http.createServer((req, res) => {
  req.resume().on('end', () => {
    const line = `${req.method} ${req.url}\n`;
    fs.appendFileSync(process.argv[3], line);
    res.end(line);
  });
}).listen(Number(process.argv[2]));
