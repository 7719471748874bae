package store

import (
	"iter"
	"slices"
)

// slots is how many parts a table has. A change copies the table, 24 bytes a
// slot, and one slot, 8 bytes a value: together least near 12 000 values, and
// 10 KB with as many services as there can be (policy.MaxVirtual).
const slots = 64

// table is values by key. It is immutable; a draft of it gives another that
// shares all but a few slots with it, so that a change costs the same beside ten
// values as beside ten thousand. The zero value is empty.
type table[K key[K], V item[K]] struct {
	parts *[slots][]V // each by key; nil for none at all
	n     int
}

// key is what values are found by.
type key[K any] interface {
	compare(other K) int
	slot() uint8 // below slots
}

// item is a value that knows its key; the zero value is none.
type item[K any] interface {
	comparable
	tableKey() K
}

// get gives the zero value where there is none.
func (t table[K, V]) get(k K) (none V) {
	if t.parts == nil {
		return none
	}
	part := t.parts[k.slot()]
	if i, ok := find(part, k); ok {
		return part[i]
	}
	return none
}

// Len tells how many there are.
func (t table[K, V]) Len() int { return t.n }

// all gives every value, in no order that means anything.
func (t table[K, V]) all() iter.Seq[V] {
	return func(yield func(V) bool) {
		if t.parts == nil {
			return
		}
		for _, part := range t.parts {
			for _, v := range part {
				if !yield(v) {
					return
				}
			}
		}
	}
}

func (t table[K, V]) draft() *draft[K, V] { return &draft[K, V]{table: t} }

// draft is a table that is being changed: what it made it changes in place, what
// it was given it copies first.
type draft[K key[K], V item[K]] struct {
	table[K, V]
	own [slots]bool // slots that are its own; without any the table is not either
	any bool
}

func (d *draft[K, V]) put(v V) {
	k := v.tableKey()
	part := d.part(k)
	i, found := find(*part, k)
	if found {
		(*part)[i] = v
		return
	}
	*part = slices.Insert(*part, i, v)
	d.n++
}

func (d *draft[K, V]) remove(k K) {
	var none V
	if d.get(k) == none {
		return
	}
	part := d.part(k)
	i, _ := find(*part, k)
	*part = slices.Delete(*part, i, i+1)
	d.n--
}

// part gives the slot of a key, to be written to.
func (d *draft[K, V]) part(k K) *[]V {
	if !d.any {
		parts := new([slots][]V)
		if d.parts != nil {
			*parts = *d.parts
		}
		d.parts, d.any = parts, true
	}
	i := k.slot()
	if !d.own[i] {
		d.parts[i], d.own[i] = slices.Clone(d.parts[i]), true
	}
	return &d.parts[i]
}

func find[K key[K], V item[K]](part []V, k K) (int, bool) {
	return slices.BinarySearchFunc(part, k, func(v V, k K) int { return v.tableKey().compare(k) })
}

// slotOf is FNV-1a of a key's parts.
func slotOf(parts ...string) uint8 {
	h := uint32(2166136261)
	for _, part := range parts {
		for i := range len(part) {
			h = (h ^ uint32(part[i])) * 16777619
		}
	}
	return uint8(h^h>>8^h>>16^h>>24) % slots
}
