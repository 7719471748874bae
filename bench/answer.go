package main

import (
	"bytes"
	"errors"
	"fmt"
)

var (
	statusOK   = []byte("HTTP/1.1 200 ")
	lengthName = []byte("ontent-")
)

var errNoLength = errors.New("an answer without Content-Length")

// answerLength is the length of an HTTP answer, head and body, or -1 when its
// head is not all here. Anything but 200 with a length is an error: what a proxy
// refuses quickly must not count as work.
func answerLength(b []byte) (int, error) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		if len(b) > 16<<10 {
			return 0, errors.New("a head of more than 16 KiB")
		}
		return -1, nil
	}
	head := b[:end]
	if !bytes.HasPrefix(head, statusOK) {
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		return 0, fmt.Errorf("answered %q", line)
	}
	length, ok := contentLength(head)
	if !ok {
		return 0, errNoLength
	}
	return end + len(headEnd) + length, nil
}

// contentLength finds the field in a head as Content-Length or, as HAProxy and
// Envoy write it, content-length.
func contentLength(head []byte) (int, bool) {
	for rest := head; ; {
		i := bytes.Index(rest, lengthName)
		if i < 1 {
			return 0, false
		}
		rest = rest[i+len(lengthName):]
		if len(rest) < 8 || !bytes.EqualFold(rest[:7], []byte("length:")) {
			continue
		}
		n, seen := 0, false
		for _, c := range bytes.TrimLeft(rest[7:], " ") {
			if c < '0' || c > '9' {
				break
			}
			n, seen = n*10+int(c-'0'), true
		}
		return n, seen
	}
}
