package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/weir-mesh/weir/policy/wire"
)

const (
	defaultTTL = 10 * time.Second // until the control plane tells its own
	minTTL     = 300 * time.Millisecond
	// silentTTLs is after how many times the lease's life without an answer the
	// control plane counts as stuck, and another connection is tried, when no
	// other control plane is left that might do better.
	silentTTLs = 3
	// leaveTimeout bounds the wait for the control plane to have removed our
	// endpoints.
	leaveTimeout = time.Second
	// demandEvery is how often demands are told as long as there are any, and
	// askAgain how soon after the last time where a share is used up: what moves
	// from proxy to proxy is divided wrongly for about as long.
	demandEvery = 500 * time.Millisecond
	askAgain    = 200 * time.Millisecond
)

// errSilent ends a session whose control plane does not answer any more.
var errSilent = errors.New("the control plane stopped answering")

// patience is how long a control plane may leave us without an answer. While
// there are others that did not fail us since the last answer, half of the
// lease's life: the next one is then to take us before the lease ends, so that
// our endpoints stay. An answer is also missing while the store of all control
// planes is away; so each is tried once, and then there is no hurry.
func patience(ttl time.Duration, addresses, moves int) time.Duration {
	if moves < addresses-1 {
		return ttl / 2
	}
	return silentTTLs * ttl
}

// answered notes an answer, and moved that none came.
func (f *Feed) answered() { f.setAttached(true); f.setMoves(func(int) int { return 0 }) }
func (f *Feed) moved()    { f.setMoves(func(n int) int { return n + 1 }) }

func (f *Feed) setAttached(attached bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link.attached = attached
}

func (f *Feed) setMoves(to func(int) int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link.moves = to(f.link.moves)
}

func (f *Feed) moves() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.link.moves
}

// attachLoop keeps us attached as long as the session lasts; run is Run's
// context. A control plane that refuses the attachment is still followed, and
// asked again.
func (f *Feed) attachLoop(run, session context.Context, conn *grpc.ClientConn) error {
	last := ""
	for failed := 0; ; failed++ {
		err := f.attach(run, session, conn)
		switch {
		case session.Err() != nil:
			return nil
		case run.Err() != nil:
			return errEnded
		case errors.Is(err, errSilent):
			return err
		case err == nil: // we left, and only follow on
			select {
			case <-session.Done():
				return nil
			case <-run.Done():
				return errEnded
			}
		}
		timer := time.NewTimer(f.backoff(failed * len(f.cfg.Control)))
		select {
		case <-session.Done():
		case <-run.Done():
		case <-timer.C:
		}
		timer.Stop()
		// Told after the wait, as most often the connection as a whole has ended,
		// and once, however often it is tried.
		if text := err.Error(); text != last && session.Err() == nil && run.Err() == nil {
			last = text
			f.cfg.Log.Warn("not attached: our endpoints are not offered; trying again", zap.Error(err))
		}
	}
}

// attach says who we are, then keeps the lease alive. It returns nil after it
// took leave.
func (f *Feed) attach(run, session context.Context, conn *grpc.ClientConn) error {
	select {
	case <-f.leaving:
		return nil
	default:
	}
	ctx, cancel := context.WithCancel(session)
	defer cancel()
	stream, err := wire.NewAttachmentClient(conn).Attach(ctx)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	answers := make(chan time.Duration, 1)
	ended := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- f.receiveTTL(stream, answers)
	}()
	defer func() { cancel(); <-done }()
	return f.attached(run, stream, answers, ended)
}

type attachStream = grpc.BidiStreamingClient[wire.AttachRequest, wire.AttachResponse]

// receiveTTL passes the lease's time to live on until the stream ends. One that
// nobody waits for is dropped: to wait here would hide the stream's end. Shares
// come with it or by themselves; by themselves they are no answer.
func (f *Feed) receiveTTL(stream attachStream, answers chan<- time.Duration) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(resp.GetShares()) > 0 {
			f.cfg.Hooks.OnShares(resp.PolicyShares())
		}
		if resp.GetTtl() == nil {
			continue
		}
		if ms := resp.GetClock(); ms != 0 && f.cfg.Hooks.OnClock != nil {
			f.cfg.Hooks.OnClock(time.UnixMilli(ms))
		}
		select {
		case answers <- resp.GetTtl().AsDuration():
		default:
		}
	}
}

func (f *Feed) attached(run context.Context, stream attachStream, answers <-chan time.Duration, ended <-chan error) error {
	defer f.setAttached(false)
	ttl, heard := defaultTTL, time.Now() // for the timer only: a span of real time
	first, wanted := f.figures()
	if err := stream.Send(f.message(&wire.AttachRequest{Hello: f.hello(), Figures: first})); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("attach: %w", err)
	}
	reported, sent, asked := heard, heard, false
	timer := time.NewTimer(f.pause(ttl, wanted))
	defer timer.Stop()
	limit := func() time.Duration { return patience(ttl, len(f.cfg.Control), f.moves()) }
	for {
		select {
		case <-run.Done():
			return f.takeLeave(stream, ended)
		case <-f.leaving:
			return f.takeLeave(stream, ended)
		case err := <-ended:
			return fmt.Errorf("attachment: %w", err)
		case d := <-answers:
			heard = time.Now()
			f.answered()
			if d = max(d, minTTL); d != ttl {
				ttl = d
				if !asked { // else the timer runs for less
					timer.Reset(f.pause(ttl, wanted))
				}
			}
		case <-f.ask:
			if !asked {
				asked = true
				timer.Reset(max(askAgain-time.Since(sent), 0))
			}
		case <-timer.C:
			now := time.Now()
			if now.Sub(heard) > limit() {
				f.moved()
				return errSilent
			}
			sign := &wire.AttachRequest{}
			figures, demands := f.figures()
			if demands || wanted || now.Sub(reported) >= f.figuresEvery() {
				sign.Figures, reported = figures, now
			}
			wanted, sent, asked = demands, now, false
			timer.Reset(f.pause(ttl, wanted))
			// io.EOF: the reason comes through ended.
			if err := stream.Send(f.message(sign)); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("attachment: %w", err)
			}
		}
	}
}

// pause is the time between two signs of life: three in a lease's time, or as many
// as there are to be reports.
func (f *Feed) pause(ttl time.Duration, wanted bool) time.Duration {
	d := ttl / 3
	if every := f.figuresEvery(); every > 0 {
		d = min(d, every)
	}
	if wanted {
		d = min(d, demandEvery)
	}
	return d
}

// figures are those to report, and whether demands are among them.
func (f *Feed) figures() (m *wire.Figures, wanted bool) {
	m = wire.FromFigures(f.cfg.Figures())
	m.Demands = wire.FromDemands(f.cfg.Demands())
	return m, len(m.Demands) > 0
}

func (f *Feed) figuresEvery() time.Duration {
	if f.cfg.FiguresEvery == nil {
		return 0
	}
	return f.cfg.FiguresEvery()
}

// takeLeave has our endpoints removed and waits until they are. What fails is
// cured by the lease, which expires.
func (f *Feed) takeLeave(stream attachStream, ended <-chan error) error {
	err := stream.Send(f.message(&wire.AttachRequest{Leaving: true, Figures: wire.FromFigures(f.cfg.Figures())}))
	err = errors.Join(err, stream.CloseSend())
	if err != nil {
		f.cfg.Log.Warn("leave was not taken: our endpoints stay until their lease expires", zap.Error(err))
		return nil
	}
	timer := time.NewTimer(leaveTimeout)
	defer timer.Stop()
	select {
	case err := <-ended:
		if !errors.Is(err, io.EOF) {
			f.cfg.Log.Warn("leaving failed: our endpoints stay until their lease expires", zap.Error(err))
		}
	case <-timer.C:
		f.cfg.Log.Warn("leave was not answered: our endpoints may stay until their lease expires")
	}
	return nil
}

// message adds what every message carries.
func (f *Feed) message(m *wire.AttachRequest) *wire.AttachRequest {
	report := f.cfg.Report()
	report.Control = f.Status().Control
	m.Report = wire.FromReport(report)
	return m
}

func (f *Feed) hello() *wire.Hello {
	h := &wire.Hello{ProxyId: f.cfg.ProxyID, Version: f.cfg.Version}
	for _, a := range f.cfg.Addresses {
		h.Addresses = append(h.Addresses, a.Unmap().AsSlice())
	}
	for _, t := range f.cfg.Endpoints {
		h.Endpoints = append(h.Endpoints, wire.FromEndpoint(t))
	}
	return h
}
