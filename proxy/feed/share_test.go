package feed

import (
	"errors"
	"io"
	"reflect"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

var meshLimit = policy.LimitRef{Service: policy.ServiceName{Namespace: "shop", Name: "web"}, Name: "default"}

// wanting is a proxy that wants something of a limit, as long as it does.
type wanting struct {
	mu      sync.Mutex // guards what follows
	demands []policy.Demand
	shares  chan []policy.Share
}

func newWanting(demands ...policy.Demand) *wanting {
	return &wanting{demands: demands, shares: make(chan []policy.Share, 100)}
}

func (w *wanting) config(cfg *Config) {
	cfg.Demands = func() []policy.Demand { w.mu.Lock(); defer w.mu.Unlock(); return w.demands }
	cfg.Hooks.OnShares = func(s []policy.Share) { w.shares <- s }
}

func demands(m *wire.AttachRequest) bool { return len(m.GetFigures().GetDemands()) > 0 }

func TestDemandsAreToldAsLongAsThereAreAny(t *testing.T) {
	c := newControl(t)
	c.ttl = time.Hour // no sign of life would come before the test's end
	at, _ := c.serve("", nil)
	var a app
	w := newWanting(policy.Demand{Limit: meshLimit, Rate: 3, Used: 2})
	start(t, &a, []string{at}, w.config)
	if m := c.message("a hello with demands", hello); !demands(m) {
		t.Error("the hello has no demands")
	}
	for range 3 {
		if got := c.message("demands", demands).Figures.PolicyDemands(); !reflect.DeepEqual(got, w.demands) {
			t.Errorf("%+v", got)
		}
	}
	w.mu.Lock()
	w.demands = nil
	w.mu.Unlock()
	c.message("that there are none any more", func(m *wire.AttachRequest) bool { return m.Figures != nil && !demands(m) })
}

func TestAShareIsAskedForAtOnce(t *testing.T) {
	c := newControl(t)
	c.ttl = time.Hour
	at, _ := c.serve("", nil)
	var a app
	w := newWanting()
	f, _ := start(t, &a, []string{at}, w.config)
	c.message("hello", hello)
	w.mu.Lock()
	w.demands = []policy.Demand{{Limit: meshLimit}}
	w.mu.Unlock()
	for range 100 { // however often
		f.AskShares()
	}
	c.message("demands", demands)
}

// received is a stream that brings some responses and ends.
type received struct {
	grpc.BidiStreamingClient[wire.AttachRequest, wire.AttachResponse]
	responses []*wire.AttachResponse
}

func (r *received) Recv() (*wire.AttachResponse, error) {
	if len(r.responses) == 0 {
		return nil, io.EOF
	}
	next := r.responses[0]
	r.responses = r.responses[1:]
	return next, nil
}

// What brings shares alone is no answer: it does not show that the store answers.
func TestSharesByThemselvesAreNoAnswer(t *testing.T) {
	w := newWanting()
	cfg := Config{Control: []string{"nowhere"}, ProxyID: "web-1", Service: own}
	w.config(&cfg)
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan time.Duration, 1)
	err = f.receiveTTL(&received{responses: []*wire.AttachResponse{
		{Shares: wire.FromShares([]policy.Share{{Limit: meshLimit, Requests: 7}})},
		{Ttl: durationpb.New(time.Minute), Shares: wire.FromShares([]policy.Share{{Limit: meshLimit, Requests: 8}})},
	}}, answers)
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	for _, want := range []float64{7, 8} {
		if got := <-w.shares; len(got) != 1 || got[0].Requests != want {
			t.Errorf("%+v", got)
		}
	}
	if got := <-answers; got != time.Minute {
		t.Errorf("the first answer is %v: shares were taken for one", got)
	}
}
