package publish

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

const (
	// maxBatch bounds the resources of one response and softBytes its size, well
	// under the 4 MiB that gRPC takes by default; one resource that is larger goes
	// alone.
	maxBatch  = 256
	softBytes = 1 << 20
	// maxFlights bounds the responses without ACK or NACK. Answers to new names
	// may fill it, as an app waits for them; changes wait until none is out, so
	// that a slow proxy gets the last state instead of each one.
	maxFlights = 8
	maxReason  = 1024 // bytes of a NACK's reason that are kept
)

// delta is one stream's state of one type: what the proxy follows, what it was
// told and what it took. It has no lock, clock or socket.
type delta struct {
	kind    kind
	subs    map[string]*sub
	asked   map[string]struct{} // subscribed and to be answered
	changed map[string]struct{} // may have changed since it was sent
	flights []flight            // sent, neither ACK nor NACK yet; oldest first

	sent, acked int64 // revisions
}

// sub is one resource that is followed. A version of "" is its absence.
type sub struct {
	told   bool // the proxy knows sent; otherwise anything is news
	before bool // it came with the stream: another control plane, or an earlier life of this one, told it
	sent   string
	acked  string
	nack   string
	nackAt time.Time
}

// flight is a response on its way.
type flight struct {
	nonce    string
	revision int64
	names    []string
	versions []string // of names
}

func newDelta(k kind) *delta {
	return &delta{kind: k, subs: map[string]*sub{}, asked: map[string]struct{}{}, changed: map[string]struct{}{}}
}

// subscribe takes names in, those known too: they are answered in any case, as
// the proxy may have dropped them before (discovery.proto, on
// resource_names_subscribe). known holds versions the proxy brought from an
// earlier stream; what it has already is not sent again. It returns the names
// that are new.
func (d *delta) subscribe(names []string, known map[string]string) (added []string) {
	for _, name := range names {
		s := d.subs[name]
		if s == nil {
			s = &sub{}
			d.subs[name] = s
			added = append(added, name)
		}
		v := known[name]
		s.told, s.before = v != "", v != ""
		if s.told {
			s.sent, s.acked = v, v
		}
		d.asked[name] = struct{}{}
	}
	return added
}

// unsubscribe forgets names and returns those that were there.
func (d *delta) unsubscribe(names []string) (removed []string) {
	for _, name := range names {
		if d.subs[name] == nil {
			continue
		}
		delete(d.subs, name)
		delete(d.asked, name)
		delete(d.changed, name)
		removed = append(removed, name)
	}
	return removed
}

// mark notes that a resource may have changed.
func (d *delta) mark(name string) {
	if d.subs[name] != nil {
		d.changed[name] = struct{}{}
	}
}

// settle takes an ACK, or a NACK with its reason. Responses before the one named
// were taken too: the stream keeps order. An unknown nonce says nothing.
func (d *delta) settle(nonce, nack string, now time.Time) (known bool) {
	at := slices.IndexFunc(d.flights, func(f flight) bool { return f.nonce == nonce })
	if at < 0 {
		return false
	}
	for _, f := range d.flights[:at] {
		d.taken(f)
	}
	if nack == "" {
		d.taken(d.flights[at])
	} else {
		d.refused(d.flights[at], nack, now)
	}
	d.flights = slices.Delete(d.flights, 0, at+1)
	return true
}

func (d *delta) taken(f flight) {
	d.acked = f.revision
	for i, name := range f.names {
		s := d.subs[name]
		if s == nil {
			continue
		}
		s.acked = f.versions[i]
		if s.sent == f.versions[i] {
			s.nack, s.nackAt = "", time.Time{}
		}
	}
}

// refused keeps the reason with each resource of the response. What was sent
// counts as told, so it is not sent again until it changes.
func (d *delta) refused(f flight, nack string, now time.Time) {
	nack = strings.ToValidUTF8(nack[:min(len(nack), maxReason)], "")
	for i, name := range f.names {
		if s := d.subs[name]; s != nil && s.sent == f.versions[i] {
			s.nack, s.nackAt = nack, now
		}
	}
}

// due takes out the names to look at next, in order, maxBatch at most. Those
// that were not asked for but may have changed are among them unless held, and
// changes tells whether any is. While it settles, what the proxy knows from before
// is not among them.
func (d *delta) due(held, settling bool) (names []string, changes bool) {
	if len(d.flights) >= maxFlights {
		return nil, false
	}
	names = d.takeFrom(d.asked, nil, settling)
	if asked := len(names); len(d.flights) == 0 && !held {
		names = d.takeFrom(d.changed, names, settling)
		changes = len(names) > asked
	}
	slices.Sort(names)
	return names, changes
}

// takeFrom moves names out of one of the two sets, whichever come first: sorting
// all of them for each batch would cost the square of a long list.
func (d *delta) takeFrom(set map[string]struct{}, names []string, settling bool) []string {
	for name := range set {
		if len(names) == maxBatch {
			break
		}
		if settling && d.subs[name].before {
			continue
		}
		names = append(names, name)
		delete(d.asked, name)
		delete(d.changed, name)
	}
	return names
}

// respond compares what is due with what the proxy knows and gives the responses
// to send, often none. entries[i] is of names[i]; nil leaves it as it is.
func (d *delta) respond(names []string, entries []*entry, revision int64, nonce func() string) []*discovery.DeltaDiscoveryResponse {
	var out []*discovery.DeltaDiscoveryResponse
	size := 0
	for i, name := range names {
		s, e := d.subs[name], entries[i]
		if s == nil || e == nil || s.told && s.sent == e.version {
			continue
		}
		if len(out) == 0 || size+e.size > softBytes {
			out = append(out, d.newResponse(revision, nonce()))
			size = 0
		}
		size += e.size
		resp, f := out[len(out)-1], &d.flights[len(d.flights)-1]
		if e.resource != nil {
			resp.Resources = append(resp.Resources, e.resource)
		} else {
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
		f.names, f.versions = append(f.names, name), append(f.versions, e.version)
		s.told, s.sent = true, e.version
	}
	return out
}

// newResponse starts a response and its flight.
func (d *delta) newResponse(revision int64, nonce string) *discovery.DeltaDiscoveryResponse {
	d.sent = revision
	d.flights = append(d.flights, flight{nonce: nonce, revision: revision})
	return &discovery.DeltaDiscoveryResponse{
		TypeUrl: typeURLs[d.kind], Nonce: nonce,
		SystemVersionInfo: strconv.FormatInt(revision, 10),
	}
}

// status describes the state for people.
func (d *delta) status() TypeStatus {
	out := TypeStatus{Type: kindNames[d.kind], Subscribed: len(d.subs), Sent: d.sent, Acked: d.acked}
	pending := maps.Clone(d.asked)
	maps.Copy(pending, d.changed)
	for _, f := range d.flights {
		for _, name := range f.names {
			if d.subs[name] != nil {
				pending[name] = struct{}{}
			}
		}
	}
	for name, s := range d.subs {
		if !s.told {
			pending[name] = struct{}{} // there was nothing that could be sent
		}
		if s.nack == "" {
			continue
		}
		out.Refused = append(out.Refused, name)
		if !s.nackAt.Before(out.NackAt) {
			out.Nack, out.NackAt = s.nack, s.nackAt
		}
	}
	out.Pending = len(pending)
	slices.Sort(out.Refused)
	return out
}
