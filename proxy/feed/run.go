package feed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy/wire"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
	// openTimeout bounds connecting: dial, TLS and the stream. The first round
	// through several addresses is quicker: a lease is to be taken over before it
	// ends (see patience), past one machine that swallows what it is sent.
	openTimeout      = 5 * time.Second
	quickOpenTimeout = 2 * time.Second
	// unackedTimeout is when the kernel gives up on a peer that acknowledges
	// nothing: a machine that is gone sends no reset, and the default is 15
	// minutes. Attachment sends something every few seconds.
	unackedTimeout = 10 * time.Second
	// window is what may be on its way to us: a whole response of the usual most.
	// That it is fixed saves a PING and its answer for nearly each message, by
	// which gRPC would look for a better one; the price is that a response of
	// several megabytes from far away takes some round trips more.
	window = 1 << 20
	// maxResponse is far above what the control plane sends in one response, and
	// lets one service with a hundred thousand endpoints through.
	maxResponse = 64 << 20
)

// Run loads the state file, then follows the control plane until ctx ends: it
// reconnects after 0.1 to 5 s, jittered, trying the next address each time.
// At the end it tells the control plane that this proxy leaves, waiting at most
// a second, writes the state file and returns nil.
func (f *Feed) Run(ctx context.Context) error {
	f.load()
	var loops sync.WaitGroup
	loops.Go(func() { f.sweepLoop(ctx) })
	loops.Go(func() { f.saveLoop(ctx) })
	f.follow(ctx)
	loops.Wait()
	f.saveIfChanged()
	return nil
}

// follow keeps a session with one control plane after the other.
func (f *Feed) follow(ctx context.Context) {
	failed := 0
	last := ""
	for n := 0; ctx.Err() == nil; n++ {
		address := f.cfg.Control[n%len(f.cfg.Control)]
		within := openTimeout
		if failed < len(f.cfg.Control) && len(f.cfg.Control) > 1 {
			within = quickOpenTimeout
		}
		heard, err := f.session(ctx, address, within)
		if ctx.Err() != nil {
			return
		}
		if heard {
			failed = 0
		}
		if text := err.Error(); text != last || heard {
			last = text // the same trouble, every few seconds for hours, is told once
			f.cfg.Log.Warn("not connected to the control plane; what is known stays in force", zap.String("address", address), zap.Error(err))
		}
		if !sleep(ctx, f.backoff(failed)) {
			return
		}
		failed++
	}
}

// backoff is how long to wait after so many failures in a row. Addresses that
// were not tried yet are tried at once, but for a little jitter: all proxies of
// a control plane that died come together.
func (f *Feed) backoff(failed int) time.Duration {
	d := minBackoff
	if round := failed / len(f.cfg.Control); round > 0 {
		d = maxBackoff
		if round < 8 {
			d = min(minBackoff<<round, maxBackoff)
		}
	}
	return time.Duration(float64(d) * (0.5 + 0.5*f.cfg.Rand()))
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// errEnded ends a session because Run ends.
var errEnded = errors.New("the proxy ends")

// session connects, follows until the connection ends, and tells whether
// anything was heard. When ctx ends it takes leave first.
func (f *Feed) session(ctx context.Context, address string, within time.Duration) (heard bool, err error) {
	f.mu.Lock()
	f.link.address = address
	f.mu.Unlock()
	defer func() { f.ended(err) }()
	conn, err := f.connect(address)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stream, err := f.open(ctx, own, cancel, conn, within)
	if err != nil {
		return false, err
	}
	f.up()
	g, gctx := errgroup.WithContext(own)
	g.Go(func() error { return f.sendLoop(gctx, stream) })
	g.Go(func() (err error) { heard, err = f.receiveLoop(stream); return err })
	g.Go(func() error { return f.attachLoop(ctx, gctx, conn) })
	g.Go(func() error { <-gctx.Done(); cancel(context.Cause(gctx)); return nil })
	err = g.Wait()
	return heard, err
}

func (f *Feed) connect(address string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if f.cfg.TLS != nil {
		creds = credentials.NewTLS(f.cfg.TLS())
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := f.cfg.Dial(ctx, "tcp", address)
			if tcp, ok := c.(*net.TCPConn); ok && err == nil {
				setUnackedTimeout(tcp)
			}
			return c, err
		}))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return conn, nil
}

// setUnackedTimeout does what it can: without it a dead peer is found later.
func setUnackedTimeout(c *net.TCPConn) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedTimeout.Milliseconds()))
		})
	}
}

// open opens the discovery stream, which lives as long as own.
func (f *Feed) open(ctx, own context.Context, cancel context.CancelCauseFunc, conn *grpc.ClientConn, within time.Duration) (wire.DiscoveryStream, error) {
	stop := context.AfterFunc(ctx, func() { cancel(errEnded) })
	defer stop()
	late := time.AfterFunc(within, func() { cancel(fmt.Errorf("no connection within %s", within)) })
	defer late.Stop()
	stream, err := wire.Discover(own, conn)
	if cause := context.Cause(own); cause != nil {
		err = cause
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return stream, nil
}

// up notes that there is a control plane to ask, and gives those who asked in
// vain another chance to wait.
func (f *Feed) up() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link.down = make(chan struct{})
	f.link.since = f.cfg.Now()
	until := f.link.since.Add(f.cfg.Wait)
	for _, s := range f.subs.all {
		if s.answer.Load() == nil {
			s.until = until
		}
	}
	f.queue = newQueue()
	f.queue.acks = f.subs.first()
	f.queue.acks[0].Node = &wire.Node{Id: f.cfg.ProxyID, UserAgentName: "weir-proxy", UserAgentVersion: f.cfg.Version}
	poke(f.wake)
}

// ended notes why there is no connection (any more), and lets go who waits.
func (f *Feed) ended(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link.lastErr = err.Error()
	if f.link.down == nil {
		return
	}
	close(f.link.down)
	f.link.down = nil
	f.link.since = f.cfg.Now()
	f.queue = newQueue()
}

func (f *Feed) sendLoop(ctx context.Context, stream wire.DiscoveryStream) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		f.mu.Lock()
		reqs := f.queue.take()
		f.mu.Unlock()
		for _, req := range reqs {
			if stream.Send(req) != nil {
				return nil // the receiver gets the reason
			}
		}
	}
}

// receiveLoop puts responses in force and answers each: taken, or refused with
// the reason.
func (f *Feed) receiveLoop(stream wire.DiscoveryStream) (heard bool, err error) {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return heard, fmt.Errorf("follow: %w", err)
		}
		if !heard {
			heard = true
			f.mu.Lock()
			f.link.heard, f.link.lastErr = true, ""
			f.mu.Unlock()
			f.cfg.Log.Info("following the control plane", zap.String("address", f.link.address))
		}
		ack := &wire.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
		if err := f.apply(resp); err != nil {
			f.cfg.Log.Warn("state refused; what was before stays in force", zap.Error(err))
			ack.ErrorDetail = &wire.ErrorDetail{Code: int32(codes.InvalidArgument), Message: err.Error()}
		}
		f.mu.Lock()
		f.queue.acks = append(f.queue.acks, ack)
		f.mu.Unlock()
		poke(f.wake)
	}
}

// sweepLoop forgets what is idle.
func (f *Feed) sweepLoop(ctx context.Context) {
	ticker := time.NewTicker(max(f.cfg.IdleAfter/10, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-f.sweep:
		}
		f.forgetIdle()
	}
}
