package policy

import (
	"sort"
	"strings"
)

// few is how many rules are walked quicker than looked up.
const few = 8

// An index finds the groups of rules that can match a request without a look at
// the others. Each group stands in one list, which is met only by requests that
// fulfil one of the group's conditions, or in rest, which all meet. So the least
// number among the first match of each list that a request meets is its first
// match of all: what the order of the rules says, whatever they are listed by.
//
// The price of a request is a look-up by its path, one by each header that few
// groups or more name a value of, and a walk of the lists it meets.
type index struct {
	rest     []int32            // numbers of groups, like all lists rising
	paths    map[string][]int32 // by exact path
	prefixes []prefixList       // by how the path starts, sorted
	headers  []headerLists      // by exact value of a header
}

type prefixList struct {
	prefix string
	groups []int32
	parent int32 // the next shorter entry that prefix starts with; -1 is none
}

type headerLists struct {
	name   string
	values map[string][]int32
}

// A condition is something that a request must fulfil for a group to match.
type condition struct {
	kind conditionKind
	name string // of the header
	text string
}

type conditionKind uint8

const (
	anyRequest conditionKind = iota
	exactPath
	pathPrefix
	exactHeader
)

func newIndex(groups []group) index {
	if len(groups) <= few {
		return index{rest: numbers(len(groups))}
	}
	shared, named := map[condition]int{}, map[string]int{}
	for i := range groups {
		for _, c := range groups[i].match.conditions() {
			shared[c]++
			named[c.name]++
		}
	}
	lists := map[condition][]int32{}
	for i := range groups {
		key := condition{}
		for _, c := range groups[i].match.conditions() {
			// The rarest, the path before headers. To look for a header that
			// hardly any rule names would cost more than it saves.
			worth := c.kind != exactHeader || named[c.name] >= few
			if worth && (key.kind == anyRequest || shared[c] < shared[key]) {
				key = c
			}
		}
		lists[key] = append(lists[key], int32(i))
	}
	return indexOf(lists)
}

func numbers(n int) []int32 {
	all := make([]int32, n)
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

func indexOf(lists map[condition][]int32) index {
	x := index{paths: map[string][]int32{}}
	values := map[string]map[string][]int32{}
	for c, list := range lists {
		switch c.kind {
		case anyRequest:
			x.rest = list
		case exactPath:
			x.paths[c.text] = list
		case pathPrefix:
			x.prefixes = append(x.prefixes, prefixList{prefix: c.text, groups: list})
		case exactHeader:
			if values[c.name] == nil {
				values[c.name] = map[string][]int32{}
			}
			values[c.name][c.text] = list
		}
	}
	for name, v := range values {
		x.headers = append(x.headers, headerLists{name, v})
	}
	sort.Slice(x.headers, func(i, j int) bool { return x.headers[i].name < x.headers[j].name })
	nest(x.prefixes)
	return x
}

// nest sorts prefixes and tells each its parent.
func nest(p []prefixList) {
	sort.Slice(p, func(i, j int) bool { return p[i].prefix < p[j].prefix })
	for i := range p {
		// Whatever sorts between a prefix and what starts with it starts with it
		// too: the parent is the entry before, or one of its parents.
		at := int32(i) - 1
		for at >= 0 && !strings.HasPrefix(p[i].prefix, p[at].prefix) {
			at = p[at].parent
		}
		p[i].parent = at
	}
}

// before gives the last prefix that sorts before or at path; those that path
// starts with are that one and its parents. -1 is none.
func (x *index) before(path string) int32 {
	low, high := 0, len(x.prefixes)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if x.prefixes[mid].prefix <= path {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return int32(low) - 1
}

// conditions lists what a matcher can be looked up by.
func (m *matcher) conditions() []condition {
	var all []condition
	switch p := &m.path; {
	case p.kind == matchExact:
		all = append(all, condition{kind: exactPath, text: p.text})
	case p.kind == matchPrefix, p.kind == matchRegex && p.text != "":
		all = append(all, condition{kind: pathPrefix, text: p.text})
	}
	for i := range m.headers {
		if h := &m.headers[i]; h.value.kind == matchExact && !h.value.not {
			all = append(all, condition{exactHeader, h.name, h.value.text})
		}
	}
	return all
}

// match gives the first group that matches; nil is none.
func (r *Router) match(req *Request) *group {
	path, query, _ := strings.Cut(req.Path, "?")
	x := &r.index
	best := r.first(x.rest, int32(len(r.groups)), req, path, query)
	if len(x.paths) > 0 {
		best = r.first(x.paths[path], best, req, path, query)
	}
	for at := x.before(path); at >= 0; at = x.prefixes[at].parent {
		if p := &x.prefixes[at]; strings.HasPrefix(path, p.prefix) {
			best = r.first(p.groups, best, req, path, query)
		}
	}
	for i := range x.headers {
		if v, ok := req.Header(x.headers[i].name); ok {
			best = r.first(x.headers[i].values[v], best, req, path, query)
		}
	}
	if int(best) == len(r.groups) {
		return nil
	}
	return &r.groups[best]
}

// first gives the first group of a list that matches, if it comes before best.
func (r *Router) first(list []int32, best int32, req *Request, path, query string) int32 {
	for _, i := range list {
		if i >= best {
			break
		}
		if r.groups[i].match.matches(req, path, query) {
			return i
		}
	}
	return best
}
