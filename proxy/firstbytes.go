package proxy

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/h2/hpack"
	"github.com/weir-mesh/weir/proxy/loop"
)

// firstBytes is a connection of which it is known what its first bytes say, and
// its upstream, which was dialled meanwhile: a server that speaks first is heard
// at once, and nobody waits for a client that says nothing.
type firstBytes struct {
	found  detect.Result
	client loop.Stream
	peeked []byte // what the client said; until the listener's callback returns

	dialing *loop.Join             // nil: nobody was dialled
	decided bool                   // the client's bytes were enough, or everything is over
	until   time.Duration          // the loop's age before which the upstream is not heard
	other   bool                   // the upstream spoke, or cannot be had
	dropped bool                   // nobody wants the upstream any more
	how     func(*loop.Conn) error // then it is closed like this
	up      *loop.Conn
	err     error
}

// patience is how long listenBoth waits, and for what.
type patience struct {
	deadline time.Time     // for the client, where nobody is dialled
	pause    time.Duration // for the rest of what a client has begun, where somebody is
	// hold is how much later a server that speaks at once is heard: the client may
	// be another proxy whose hello is on its way.
	hold time.Duration
}

// listenBoth peeks at the client while dial runs, and ends at whoever speaks
// first, calling then in a task. With dial nil only the client is heard, until the
// deadline; else both may be silent for as long as they like. Exactly one of
// takeUpstream and dropUpstream must follow an error that is nil.
func (p *Proxy) listenBoth(client loop.Stream, wait patience, dial func() (*loop.Conn, error), then func(*firstBytes, error)) {
	l := client.Socket().Loop()
	f := &firstBytes{client: client, until: l.Age() + wait.hold}
	cfg := detect.Config{Deadline: wait.deadline, Enough: func() bool { return f.other }}
	if dial != nil {
		cfg.Deadline, cfg.Pause = time.Time{}, wait.pause
		f.dialing = l.Spawn(func() { f.dial(l, dial) })
	}
	detect.Peek(client, cfg, func(found detect.Result, peeked []byte, err error) {
		f.found, f.peeked = found, peeked
		f.decided = true
		if err == nil && dial == nil && len(peeked) == 0 {
			err = errSilent
		}
		if err != nil { // a client that reset: so does its connection to the upstream
			f.drop((*loop.Conn).Reset)
		}
		then(f, err)
	})
}

var errSilent = errors.New("the client said nothing")

// beginning is how long the begin of an HTTP request or a ClientHello to an address
// that is no service's may stay one, after its last byte. A protocol with such
// first bytes, whose client then waits for an answer, is held up for so long; HTTP
// or TLS that pauses so long is carried all the same, to where it was going. On
// the way in HandshakeTime takes its place: a hello of the mesh must not be missed.
const beginning = time.Second

// helloGrace is how long a caller is given to begin the mesh's TLS before the app's
// greeting goes out, where plaintext is allowed: a greeting instead of a ServerHello
// breaks the call, and an app beside the proxy greets sooner than a hello crosses
// a network. The price is paid by callers in plaintext of apps that speak first.
// The hello follows the caller's ACK at once, whatever the distance; what is
// allowed for is a caller whose processor is busy.
const helloGrace = 100 * time.Millisecond

// refusedGrace is how long a client may take to say what it wants after the
// address it dialled turned out not to answer: its first bytes may still name a
// service of the mesh.
const refusedGrace = 200 * time.Millisecond

// dial connects, and parks the upstream until it says something, which stays
// unread: both may be silent for hours, and nothing waits for them.
func (f *firstBytes) dial(l *loop.Loop, dial func() (*loop.Conn, error)) {
	f.up, f.err = dial()
	switch {
	case f.dropped:
		f.closeUpstream()
	case f.decided:
	case f.err != nil:
		l.AfterFunc(refusedGrace, f.enough)
	default:
		f.up.Park(f)
	}
}

// Run is begun when the upstream has spoken, or has gone.
func (f *firstBytes) Run() {
	l := f.client.Socket().Loop()
	if left := f.until - l.Age(); left > 0 && !f.decided {
		l.AfterFunc(left, f.enough)
		return
	}
	f.enough()
}

// enough ends the wait for the client.
func (f *firstBytes) enough() {
	if !f.decided {
		f.other = true
		f.client.Socket().Wake()
	}
}

// takeUpstream gives the upstream connection, which is to be parked anew. A dial
// that is under way is waited for: its time is limited.
func (f *firstBytes) takeUpstream() (*loop.Conn, error) {
	f.dialing.Wait()
	up := f.up
	f.up = nil
	return up, f.err
}

// dropUpstream closes what was dialled, or will be.
func (f *firstBytes) dropUpstream() { f.drop((*loop.Conn).Close) }

func (f *firstBytes) drop(how func(*loop.Conn) error) {
	f.dropped, f.how = true, how
	f.closeUpstream()
}

func (f *firstBytes) closeUpstream() {
	if f.up != nil {
		_ = f.how(f.up)
	}
}

// declaredWord counts connections of which nothing had to be detected.
const declaredWord = "declared"

// outcomeWord names a detection's end for the metric.
func outcomeWord(r detect.Result) string {
	switch r.Outcome {
	case detect.OtherSpoke:
		return "server_first"
	case detect.Silent:
		return "timeout"
	}
	switch r.Kind {
	case detect.HTTP1:
		return "http1"
	case detect.HTTP2:
		return "http2"
	case detect.TLS:
		return "tls"
	default:
		return "opaque"
	}
}

// hostIn finds the Host field in the first bytes of a request. It need not be
// strict: what it finds only leads to a service, whose requests are then read
// by the strict parser.
func hostIn(head []byte) string {
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, []byte("\r\n"))
		if len(line) == 0 {
			return ""
		}
		if len(line) > 5 && strings.EqualFold(string(line[:5]), "host:") {
			host := strings.TrimSpace(string(line[5:]))
			if h, _, err := net.SplitHostPort(host); err == nil {
				return h
			}
			return host
		}
		head = rest
	}
	return ""
}

// authorityIn finds the :authority of the first request in the first bytes of
// HTTP/2. Clients that wait for the server's SETTINGS, such as grpc-go's, have not
// said it yet.
func authorityIn(peeked []byte) string {
	const preface, frameHead, headers, endHeaders, padded, priority = 24, 9, 1, 0x4, 0x8, 0x20
	rest := peeked[min(preface, len(peeked)):]
	for len(rest) >= frameHead {
		n := int(rest[0])<<16 | int(rest[1])<<8 | int(rest[2])
		if len(rest) < frameHead+n {
			return ""
		}
		kind, flags, payload := rest[3], rest[4], rest[frameHead:frameHead+n]
		rest = rest[frameHead+n:]
		if kind != headers {
			continue
		}
		if flags&endHeaders == 0 || flags&padded != 0 {
			return "" // nobody does so with the first request
		}
		if flags&priority != 0 {
			payload = payload[min(5, len(payload)):]
		}
		return authorityOf(payload)
	}
	return ""
}

func authorityOf(block []byte) string {
	var d hpack.Decoder
	var h hpack.Head
	if err := d.Decode(&h, block, hpack.Limits{Size: detect.MaxBytes, Fields: 128}); err != nil {
		return ""
	}
	for _, f := range h.Fields {
		if f.Name == ":authority" {
			if host, _, err := net.SplitHostPort(f.Value); err == nil {
				return host
			}
			return f.Value
		}
	}
	return ""
}

// meshName reads a host name as the name of a service, in the forms that the
// DNS server answers.
func (p *Proxy) meshName(host string) (policy.ServiceName, bool) {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	domain := p.cfg.ClusterDomain
	if domain == "" {
		domain = "cluster.local"
	}
	host = strings.TrimSuffix(host, ".svc."+domain)
	host = strings.TrimSuffix(host, ".svc")
	if host == "" || strings.Count(host, ".") > 1 {
		return policy.ServiceName{}, false
	}
	n, err := policy.ParseServiceName(host, p.cfg.Service.Namespace)
	return n, err == nil
}
