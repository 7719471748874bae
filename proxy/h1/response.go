package h1

// Response is the head of an upstream's answer as it was received. Its strings
// are valid until Relay, Discard, Upgraded or the next RoundTrip.
type Response struct {
	Status        int
	Reason        string
	ContentLength int64 // -1 when the head does not tell, or the body is chunked

	message
	lineDone bool
	minor    int
	reason   span
}

func (r *Response) reset() {
	r.message.reset()
	r.Status, r.Reason, r.ContentLength = 0, "", 0
	r.lineDone, r.minor, r.reason = false, 0, span{}
}

// parse reads a response head from b, as Request.parse does.
func (r *Response) parse(b []byte, cfg *Config) (done bool, err error) {
	if !r.lineDone {
		line, end, ok, err := r.nextLine(b, cfg.MaxHeadBytes, errHeadTooLarge)
		if err != nil || !ok {
			return false, err
		}
		if err := r.parseLine(line); err != nil {
			return false, err
		}
		r.line, r.seen, r.lineDone = end, end, true
	}
	if done, err = r.parseFields(b, cfg); !done || err != nil {
		return false, err
	}
	if err := r.framed(r.minor); err != nil {
		return false, err
	}
	r.Reason = r.reason.of(r.b)
	r.ContentLength = r.cl
	return true, nil
}

// parseLine reads version SP code SP reason, RFC 9112 section 4. The second
// space may be missing with an empty reason: too many servers leave it out, and
// nobody can frame the message otherwise for it.
func (r *Response) parseLine(line []byte) error {
	if len(line) < 12 || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errStatusLine
	}
	switch string(line[:8]) {
	case "HTTP/1.1":
		r.minor = 1
	case "HTTP/1.0":
		r.minor = 0
	default:
		return errVersion
	}
	for _, c := range line[9:12] {
		if !isDigit(c) {
			return errStatusLine
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || !validValue(line[12:]) {
		return errStatusLine
	}
	r.reason = span{min(13, len(line)), len(line)}
	return nil
}

// framing is how the body of the answer to a request of the method is framed, RFC
// 9112 section 6.3.
func (r *Response) framing(method string) framing {
	switch {
	case r.bodyless(method):
		return noBody
	case r.chunked:
		return byChunks
	case r.cl >= 0:
		return byLength
	}
	return untilClose
}

// bodyless reports whether this response cannot have a body, RFC 9112 section 6.3.
func (r *Response) bodyless(method string) bool {
	return method == "HEAD" || r.Status < 200 || r.Status == 204 || r.Status == 304
}
