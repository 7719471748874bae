package telemetry

import (
	"cmp"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// maxWords caps the values of a label whose words come from the code, in case one does not; maxRules caps those that are ids of rules.
const (
	maxWords = 32
	maxRules = 256
)

// words holds the counters of one label's values. A known word costs a map look-up, no lock and no allocation.
type words struct {
	mu   *sync.Mutex // the registry's
	make func(word string) prometheus.Counter
	most int // of words; 0 is maxWords

	known atomic.Pointer[map[string]prometheus.Counter] // copied on write
}

func (w *words) get(word string) prometheus.Counter {
	if c := w.look(word); c != nil {
		return c
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.look(word); c != nil {
		return c
	}
	more := map[string]prometheus.Counter{}
	if known := w.known.Load(); known != nil {
		maps.Copy(more, *known)
	}
	if len(more) == w.room()-1 {
		word = other
	}
	c := w.make(word)
	more[word] = c
	w.known.Store(&more)
	return c
}

func (w *words) room() int { return cmp.Or(w.most, maxWords) }

// look returns a known word's counter, that of other if there is no room for more words, or nil.
func (w *words) look(word string) prometheus.Counter {
	known := w.known.Load()
	if known == nil {
		return nil
	}
	if c := (*known)[word]; c != nil {
		return c
	}
	if len(*known) >= w.room() {
		return (*known)[other]
	}
	return nil
}
