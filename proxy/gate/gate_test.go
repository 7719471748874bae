package gate

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs loops until the test ends.
func start(t testing.TB, n int) []*loop.Loop {
	t.Helper()
	loops := make([]*loop.Loop, n)
	for i := range loops {
		l, err := loop.New(loop.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); l.Run() }()
		t.Cleanup(func() { l.Close(); <-ended })
		loops[i] = l
	}
	return loops
}

// begin begins f as a task; the channel is closed when it has ended.
func begin(l *loop.Loop, f func()) <-chan struct{} {
	done := make(chan struct{})
	l.Post(func() { l.Go(func() { defer close(done); f() }) })
	return done
}

// waits returns when so many wait at the gate.
func (g *Gate) waits(n int) {
	for g.Waiting() != n {
		time.Sleep(100 * time.Microsecond)
	}
}

func TestWhoIsTooManyWaitsInTurn(t *testing.T) {
	var g Gate
	g.Set(1, 3)
	l := start(t, 1)[0]
	if !g.TryEnter() {
		t.Fatal("an empty gate")
	}
	var order []int
	var done []<-chan struct{}
	for i := range 3 {
		done = append(done, begin(l, func() {
			if got := g.Enter(l, l.Now().Add(time.Hour)); got != Entered {
				t.Errorf("%d: %v", i, got)
			}
			order = append(order, i)
			g.Leave()
		}))
		g.waits(i + 1)
	}
	<-begin(l, func() {
		if got := g.Enter(l, l.Now().Add(time.Hour)); got != Full {
			t.Errorf("with three in the queue: %v", got)
		}
	})
	if g.TryEnter() {
		t.Error("passed those who wait")
	}
	g.Leave()
	for _, d := range done {
		<-d
	}
	if len(order) != 3 || order[0] != 0 || order[1] != 1 || order[2] != 2 || g.Inside() != 0 || g.Waiting() != 0 {
		t.Errorf("in the order %v; %d are inside, %d wait", order, g.Inside(), g.Waiting())
	}
}

func TestWithoutAQueueNobodyWaits(t *testing.T) {
	var g Gate
	g.Set(2, 0)
	l := start(t, 1)[0]
	<-begin(l, func() {
		until := l.Now().Add(time.Hour)
		if a, b, c := g.Enter(l, until), g.Enter(l, until), g.Enter(l, until); a != Entered || b != Entered || c != Full {
			t.Errorf("%v, %v, %v", a, b, c)
		}
	})
}

func TestWhoWaitsTooLongIsLate(t *testing.T) {
	var g Gate
	g.Set(1, 1)
	l := start(t, 1)[0]
	g.TryEnter()
	<-begin(l, func() {
		if got := g.Enter(l, l.Now().Add(2*time.Millisecond)); got != Late {
			t.Errorf("%v", got)
		}
	})
	if g.Waiting() != 0 || g.Inside() != 1 {
		t.Errorf("%d wait, %d are inside", g.Waiting(), g.Inside())
	}
}

func TestALoopThatClosesWaitsForNobody(t *testing.T) {
	var g Gate
	g.Set(1, 1)
	g.TryEnter()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan Outcome, 1)
	begin(l, func() { got <- g.Enter(l, l.Now().Add(time.Hour)) })
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	g.waits(1)
	l.Close()
	<-ended
	if o := <-got; o != Late {
		t.Errorf("%v", o)
	}
}

func TestAWiderGateLetsIn(t *testing.T) {
	var g Gate
	g.Set(1, 5)
	l := start(t, 1)[0]
	g.TryEnter()
	var done []<-chan struct{}
	for range 2 {
		done = append(done, begin(l, func() { g.Enter(l, l.Now().Add(time.Hour)) }))
	}
	g.waits(2)
	g.Set(3, 5)
	<-done[0]
	<-done[1]
	if g.Inside() != 3 {
		t.Errorf("%d are inside", g.Inside())
	}
	g.Set(0, 0)
	for range 100 {
		if !g.TryEnter() {
			t.Fatal("without a bound somebody is turned away")
		}
	}
}

// Four loops, each with many tasks that come, wait, give up and leave: never are more inside than may be, nobody is forgotten, and
// in the end all is empty.
func TestTheBoundIsExactOverLoops(t *testing.T) {
	const most = 7
	var g Gate
	g.Set(most, 40)
	var inside, entered, turned atomic.Int64
	var wg sync.WaitGroup
	for _, l := range start(t, 4) {
		for range 50 {
			wg.Add(1)
			l.Post(func() {
				l.Go(func() {
					defer wg.Done()
					for range 40 {
						patience := time.Duration(rand.IntN(3)) * time.Millisecond
						if g.Enter(l, l.Now().Add(patience)) != Entered {
							turned.Add(1)
							l.Yield()
							continue
						}
						if n := inside.Add(1); n > most {
							t.Errorf("%d are inside", n)
						}
						entered.Add(1)
						l.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
						inside.Add(-1)
						g.Leave()
					}
				})
			})
		}
	}
	wg.Wait()
	if g.Inside() != 0 || g.Waiting() != 0 || entered.Load() == 0 || turned.Load() == 0 {
		t.Errorf("%d inside, %d waiting; %d entered, %d were turned away", g.Inside(), g.Waiting(), entered.Load(), turned.Load())
	}
}

func TestPassingAllocatesNothing(t *testing.T) {
	var g Gate
	g.Set(5, 5)
	if n := testing.AllocsPerRun(100, func() {
		if g.TryEnter() {
			g.Leave()
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPass(b *testing.B) {
	var g Gate
	g.Set(5, 5)
	for b.Loop() {
		if g.TryEnter() {
			g.Leave()
		}
	}
}
