package publish

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// kind is a type of resource. Their order is that in which one flush sends
// them: whom to trust, what to enforce, where to send to.
type kind uint8

const (
	kindMesh kind = iota
	kindInbound
	kindService
	kindLookup
	kinds
)

var typeURLs = [kinds]string{wire.MeshType, wire.InboundType, wire.ServiceType, wire.LookupType}

var kindNames = [kinds]string{"mesh", "inbound", "service", "lookup"}

func kindOf(typeURL string) (kind, bool) {
	for k, u := range typeURLs {
		if u == typeURL {
			return kind(k), true
		}
	}
	return 0, false
}

// parseName reads "<namespace>/<name>", and nothing else: a resource has one
// name only, or a change would miss who subscribed under another.
func parseName(s string) (policy.ServiceName, bool) {
	ns, name, ok := strings.Cut(s, "/")
	n := policy.ServiceName{Namespace: ns, Name: name}
	return n, ok && n.Validate() == nil
}

// entry is one version of a resource, shared by all who follow it. resource is
// nil and version "" when it does not exist.
type entry struct {
	version  string
	resource *discovery.Resource
	size     int // bytes of the encoded resource and its name, about
}

// encode gives a message's entry. The version is a hash, so that it holds
// across control planes and restarts. Deterministic encoding is stable only
// within one build (google.golang.org/protobuf/proto, MarshalOptions): the price
// is that an upgraded control plane may send a resource once too often.
func encode(k kind, name string, m proto.Message) (*entry, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s %q: %w", kindNames[k], name, err)
	}
	sum := sha256.Sum256(b)
	version := hex.EncodeToString(sum[:12])
	return &entry{
		version: version, size: len(b) + len(name),
		resource: &discovery.Resource{
			Name: name, Version: version,
			Resource: &anypb.Any{TypeUrl: typeURLs[k], Value: b},
		},
	}, nil
}

// read asks the source for a resource and encodes it.
func read(src Source, k kind, name string) (*entry, error) {
	absent := &entry{}
	switch k {
	case kindMesh:
		if name == wire.MeshName {
			return encode(k, name, wire.FromMesh(src.Mesh()))
		}
	case kindInbound:
		if n, ok := parseName(name); ok {
			in := src.Inbound(n)
			return encode(k, name, wire.FromInbound(&in))
		}
	case kindService:
		if n, ok := parseName(name); ok {
			if svc, exists := src.Service(n); exists {
				return encode(k, name, wire.FromService(svc))
			}
		}
	case kindLookup:
		if n, exists := src.Lookup(name); exists {
			return encode(k, name, &wire.Lookup{Service: wire.FromName(n)})
		}
	}
	return absent, nil
}

// topic is one resource that somebody follows.
type topic struct {
	kind kind
	name string

	subscribers map[*session]struct{} // guarded by Server.mu

	generation atomic.Uint64 // counts the changes

	building sync.Mutex // one reads and encodes, the others wait for it
	current  *entry     // nil before the first success
	builtAt  uint64     // the generation that current is of
	err      error      // why there is nothing newer
	built    bool
}

// touchLocked marks the topic with its subscribers and adds them to woken; it
// needs Server.mu. The generation goes first: who was marked before it would
// clear the mark on the strength of what was there before.
func (t *topic) touchLocked(woken map[*session]struct{}) {
	t.generation.Add(1)
	for ses := range t.subscribers {
		ses.mark(t.kind, t.name)
		woken[ses] = struct{}{}
	}
}

// load gives the resource as of now. It is read once per change, whoever asks
// first. What cannot be encoded leaves the version before it in force; nil
// when there is none. fresh tells that this call read it.
func (t *topic) load(src Source) (e *entry, fresh bool, err error) {
	t.building.Lock()
	defer t.building.Unlock()
	if g := t.generation.Load(); !t.built || t.builtAt != g {
		next, err := read(src, t.kind, t.name)
		t.built, t.builtAt, t.err, fresh = true, g, err, true
		if err == nil {
			t.current = next
		}
	}
	return t.current, fresh, t.err
}
