package health

import "time"

// historySize is how many results of an endpoint are kept.
const historySize = 100

// history is an endpoint's last results. A mesh may have 100 000 endpoints, so
// a result takes 32 bytes, and room is made for what there is: 3 KiB at most.
type history struct {
	kept []record
	next int // where the next goes, once all places are taken
}

// record is a Result; its text is shared with the one before where both are
// the same, as they mostly are.
type record struct {
	at      int64  // Unix milliseconds
	took    uint32 // microseconds
	check   checkKind
	passed  bool
	healthy bool
	changed bool
	detail  string
}

type checkKind uint8

const (
	checkHTTP checkKind = iota
	checkGRPC
	checkTCP
)

var checkWords = [...]string{checkHTTP: "http", checkGRPC: "grpc", checkTCP: "tcp"}

func kindOf(check string) checkKind {
	for k, word := range checkWords {
		if word == check {
			return checkKind(k)
		}
	}
	return checkHTTP
}

// add keeps a result, in the place of the oldest when there are enough.
func (h *history) add(r *Result) {
	rec := record{
		at: r.At.UnixMilli(), took: uint32(min(r.Took.Microseconds(), 1<<32-1)), check: kindOf(r.Check),
		passed: r.Passed, healthy: r.Healthy, changed: r.Changed, detail: r.Detail,
	}
	if last := h.last(); last != nil && last.detail == rec.detail {
		rec.detail = last.detail
	}
	if len(h.kept) < historySize {
		h.kept = append(h.kept, rec)
		return
	}
	h.kept[h.next] = rec
	h.next = (h.next + 1) % historySize
}

func (h *history) last() *record {
	if len(h.kept) == 0 {
		return nil
	}
	return &h.kept[(h.next+len(h.kept)-1)%len(h.kept)]
}

// results lists what is kept, the newest last.
func (h *history) results() []Result {
	out := make([]Result, 0, len(h.kept))
	for i := range h.kept {
		r := &h.kept[(h.next+i)%len(h.kept)]
		out = append(out, Result{
			At: time.UnixMilli(r.at), Took: time.Duration(r.took) * time.Microsecond, Check: checkWords[r.check],
			Passed: r.passed, Detail: r.detail, Healthy: r.healthy, Changed: r.changed,
		})
	}
	return out
}
