"""Answers each request with its method and target, and writes both to a file: PORT FILE."""
import http.server
import sys
import threading

seen, lock = open(sys.argv[2], "a"), threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            # As lenient as int() is, as many such readers are.
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        line = f"{self.command} {self.path}\n"
        with lock:
            seen.write(line)
            seen.flush()
        self.send_response(200)
        self.send_header("Content-Length", str(len(line)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(line.encode())

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = handle_one

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
