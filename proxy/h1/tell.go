package h1

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// AppendCopy appends the request as RoundTrip sends it, with one field more, for
// Tell. ok is false, and nothing appended, while not all of the body is at hand,
// when some of it is not kept any more (Config.ReplayBytes), while it is being
// sent, and for a request to switch protocols.
func (x *Exchange) AppendCopy(out []byte, name, value string) (_ []byte, ok bool) {
	if !x.whole() {
		return out, false
	}
	changes := x.toUpstream.list
	x.toUpstream.list = append(changes, edit{name, value, editAdd})
	out = x.appendWhole(out)
	x.toUpstream.list = changes
	return out, true
}

// Whole reports whether all of the request body has been read from the client.
func (x *Exchange) Whole() bool { return x.body.done }

// tellBytes is how much of an answer that nobody wants is read so that its
// connection can be used again.
const tellBytes = 1 << 20

// Tell sends a whole request, made by AppendCopy, to up, and reads the answer
// without keeping any of it. The deadline, which must be given, bounds all of it.
// On error up is closed, and the error is an *Error of SideUpstream; otherwise up
// is the caller's again, who closes it or puts it back as up.Reusable says.
func (sv *Server) Tell(up *Upstream, request []byte, method string, deadline time.Time) (status int, err error) {
	t := telling{up: up, cfg: &sv.cfg, method: method}
	t.resp.reset()
	_ = up.conn.SetDeadline(deadline) // fails on a closed connection only, as what follows will
	if status, err = t.run(request); err != nil {
		_ = up.Close()
		return 0, err
	}
	_ = up.conn.SetDeadline(time.Time{})
	return status, nil
}

// telling is a request without a client.
type telling struct {
	up      *Upstream
	cfg     *Config
	method  string
	resp    Response
	content body
}

func (t *telling) run(request []byte) (status int, err error) {
	up := t.up
	up.ok, up.before = false, up.written()
	heard := up.look(up.stock.loop.Now().Sub(up.idleSince))
	if heard != quiet && (heard != spoke || up.used) {
		return 0, t.fault(WriteHead, ErrStale)
	}
	if _, err := up.write(request); err != nil {
		return 0, t.fault(WriteHead, err)
	}
	if err := t.readHead(); err != nil {
		return 0, t.fault(ReadResponse, err)
	}
	if err := t.readContent(); err == errLong {
		up.unfit()
		return t.resp.Status, nil
	} else if err != nil {
		return 0, t.fault(ReadContent, err)
	}
	up.settle(&t.content, &t.resp, false)
	return t.resp.Status, nil
}

func (t *telling) fault(step Step, err error) *Error {
	err = truncatedIfEOF(err)
	timeout := isTimeout(err)
	return &Error{
		Side: SideUpstream, Step: step, Timeout: timeout, Sent: t.up.written() != t.up.before, Got: step > WriteBody, Reused: t.up.used,
		Status: statusFor(SideUpstream, timeout), Err: err,
	}
}

func (t *telling) readHead() error {
	up := t.up
	for interim := 0; ; {
		done, err := t.resp.parse(up.unread(), t.cfg)
		switch {
		case err != nil:
			return err
		case !done:
			if err := up.fill(); err != nil {
				return err
			}
			continue
		}
		up.r += len(t.resp.b)
		switch {
		case t.resp.Status == http.StatusSwitchingProtocols:
			return errUnasked
		case t.resp.Status >= 200:
			return nil
		}
		if interim++; interim > maxInterim || t.resp.cl > 0 || t.resp.chunked {
			return errInterim
		}
		t.resp.reset()
	}
}

func (t *telling) readContent() error {
	up, c := t.up, &t.content
	c.begin(t.resp.framing(t.method), t.resp.cl, up.buf, up.r, up.w)
	for err := c.advance(); !c.done; err = c.advance() {
		switch {
		case err != nil:
			return err
		case c.total > tellBytes:
			return errLong
		}
		c.sent = c.dec
		c.recycle()
		err := up.more(c)
		if errors.Is(err, io.EOF) && c.kind == untilClose {
			c.done = true
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
