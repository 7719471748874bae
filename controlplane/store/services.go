package store

import (
	"iter"
	"slices"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// slots is how many parts Services has. A change copies the table, 24 bytes a
// slot, and one slot, 8 bytes a service: together least near 12 000 services,
// and 10 KB with as many as there can be (policy.MaxVirtual).
const slots = 64

// Services are the services of a State, by name. The value is immutable; with
// and without give another that shares all but one slot with it, so that a
// change costs the same beside ten services as beside ten thousand. The zero
// value is empty.
type Services struct {
	table *[slots][]*Service // each by name; nil for none at all
	n     int
}

// Get gives the service of a name; nil when there is none.
func (s Services) Get(name policy.ServiceName) *Service {
	if s.table == nil {
		return nil
	}
	slot := s.table[slotOf(name)]
	if i, ok := find(slot, name); ok {
		return slot[i]
	}
	return nil
}

// Len tells how many there are.
func (s Services) Len() int { return s.n }

// All gives every service, in no order that means anything.
func (s Services) All() iter.Seq2[policy.ServiceName, *Service] {
	return func(yield func(policy.ServiceName, *Service) bool) {
		if s.table == nil {
			return
		}
		for _, slot := range s.table {
			for _, svc := range slot {
				if !yield(svc.Name, svc) {
					return
				}
			}
		}
	}
}

// ServicesOf makes Services of some; of two with the same name the later one.
func ServicesOf(services ...*Service) Services {
	var e draft
	for _, svc := range services {
		e.put(svc)
	}
	return e.Services
}

// draft is Services that are being changed: what it made it changes in place,
// what it was given it copies first.
type draft struct {
	Services
	own [slots]bool // slots that are its own; without any the table is not either
	any bool
}

func (s Services) draft() *draft { return &draft{Services: s} }

func (e *draft) put(svc *Service) {
	slot := e.slot(svc.Name)
	i, found := find(*slot, svc.Name)
	if found {
		(*slot)[i] = svc
		return
	}
	*slot = slices.Insert(*slot, i, svc)
	e.n++
}

func (e *draft) remove(name policy.ServiceName) {
	if e.Get(name) == nil {
		return
	}
	slot := e.slot(name)
	i, _ := find(*slot, name)
	*slot = slices.Delete(*slot, i, i+1)
	e.n--
}

// slot gives the one of a name, to be written to.
func (e *draft) slot(name policy.ServiceName) *[]*Service {
	if !e.any {
		table := new([slots][]*Service)
		if e.table != nil {
			*table = *e.table
		}
		e.table, e.any = table, true
	}
	i := slotOf(name)
	if !e.own[i] {
		e.table[i], e.own[i] = slices.Clone(e.table[i]), true
	}
	return &e.table[i]
}

func find(slot []*Service, name policy.ServiceName) (int, bool) {
	return slices.BinarySearchFunc(slot, name, func(s *Service, name policy.ServiceName) int { return compareNames(s.Name, name) })
}

func compareNames(a, b policy.ServiceName) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// slotOf is FNV-1a of the name.
func slotOf(n policy.ServiceName) uint8 {
	h := uint32(2166136261)
	for _, part := range [...]string{n.Namespace, "/", n.Name} {
		for i := range len(part) {
			h = (h ^ uint32(part[i])) * 16777619
		}
	}
	return uint8(h^h>>8^h>>16^h>>24) % slots
}
