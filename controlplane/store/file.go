package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// File is what a mesh file has put into the state, beside its endpoints.
type File struct {
	Name   string `json:"name"`   // its path, as the control plane was told
	Digest string `json:"digest"` // tells one content from another
	By     string `json:"by"`     // the control plane that put it in force
	// AppliedAt is when it did, in Unix seconds.
	AppliedAt float64 `json:"applied_at"`
	// Settings is a patch that lies over all that UpdateSettings has set.
	Settings json.RawMessage `json:"settings"`
}

// ApplyFile puts a file's settings and endpoints into the state and takes out
// those that it put there before and has no more. What is so already is not
// written, so that applying a file again costs nothing; an endpoint keeps its
// status. What it changes is noted in the history, as the file's. All of it is one
// transaction as long as etcd takes so much at once (120 changes in a cluster,
// some thousands in the embedded one); with more, endpoints come in several and
// the settings with the last. The error is policy.Problems when something is not
// valid; nothing is stored then.
func (s *Store) ApplyFile(ctx context.Context, f File, endpoints []policy.Endpoint) error {
	var problems policy.Problems
	for i := range endpoints {
		problems = append(problems, endpoints[i].Validate().Under(fmt.Sprintf("endpoints[%d]", i))...)
	}
	if err := problems.Err(); err != nil {
		return err
	}
	ctx = WithAuthor(ctx, policy.Author{Who: policy.ByFile, Name: f.Name})
	return s.write(ctx, "apply the file "+f.Name, func(ctx context.Context) error {
		if err := s.addressServices(ctx, endpoints); err != nil {
			return err
		}
		return s.lookAgain(ctx, s.applyFile(ctx, &f, endpoints))
	})
}

// fileOps is how many changes of a file are one transaction. A cluster that was
// told nothing takes 128 operations, of which some are the history's. With the
// embedded etcd it is bytes that count: here 1600 for each.
func (s *Store) fileOps() int {
	if s.server != nil {
		return maxTxnOps / 4
	}
	return 120
}

// addressServices gives each service its virtual address that has none. Nobody
// sees a service that has nothing else.
func (s *Store) addressServices(ctx context.Context, endpoints []policy.Endpoint) error {
	fresh := map[policy.ServiceName]struct{}{}
	for i := range endpoints {
		if name := endpoints[i].Service(); !s.hasVirtual(name) {
			fresh[name] = struct{}{}
		}
	}
	names := slices.SortedFunc(maps.Keys(fresh), func(a, b policy.ServiceName) int { return cmp.Compare(a.String(), b.String()) })
	// An address that is inherited takes two operations.
	for part := range slices.Chunk(names, s.fileOps()/2) {
		if err := s.addressSome(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) addressSome(ctx context.Context, names []policy.ServiceName) error {
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	conditions, ops, err := s.allocate(ctx, names)
	switch {
	case err != nil:
		return err
	case len(ops) == 0: // another process was faster
		return s.load(ctx)
	}
	_, err = s.commit(ctx, conditions, ops)
	return err
}

func (s *Store) applyFile(ctx context.Context, f *File, endpoints []policy.Endpoint) error {
	steps, was, revision, err := s.fileSteps(endpoints)
	if err != nil {
		return err
	}
	last, err := s.settingsStep(ctx, f, was)
	if err != nil {
		return err
	}
	if last != nil {
		steps = append(steps, *last)
	}
	for part := range slices.Chunk(steps, s.fileOps()) {
		// The steps are worked out from what this process knows: who has applied a
		// file since makes it look again.
		if err := s.takeSteps(ctx, part, unchanged(s.keys.file(), revision)); err != nil {
			return err
		}
	}
	return nil
}

// fileStep is one key's change, what must hold for it, and what the history is to
// say of it.
type fileStep struct {
	conditions []clientv3.Cmp
	op         clientv3.Op
	note       change
}

func (s *Store) takeSteps(ctx context.Context, steps []fileStep, conditions ...clientv3.Cmp) error {
	var ops []clientv3.Op
	var note []change
	for _, step := range steps {
		conditions, ops = append(conditions, step.conditions...), append(ops, step.op)
		if step.note.Action != policy.Unchanged {
			note = append(note, step.note)
		}
	}
	more, err := s.noteOps(ctx, note, operators)
	if err != nil {
		return err
	}
	if _, err := s.commit(ctx, conditions, append(ops, more...)); err != nil {
		return err
	}
	s.noted(ctx, more)
	return nil
}

// fileSteps is how the endpoints in the state differ from those the file has:
// first what is new or another, then what is to go, each in the order of keys. It
// also gives the file that was applied last, and its revision.
func (s *Store) fileSteps(endpoints []policy.Endpoint) (steps []fileStep, was *File, revision int64, err error) {
	want := map[string]policy.Endpoint{}
	for _, e := range endpoints {
		want[s.keys.endpoint(e.Service(), e.ID)] = e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := map[string]storedEndpoint{}
	var gone []string
	for name, svc := range s.model.services {
		for id, e := range svc.endpoints {
			key := s.keys.endpoint(name, id)
			_, wanted := want[key]
			if e.File && !wanted {
				gone = append(gone, key)
			}
			if wanted || e.File {
				have[key] = e
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		step, err := putStep(key, have[key], want[key])
		if err != nil {
			return nil, nil, 0, err
		}
		if step != nil {
			steps = append(steps, *step)
		}
	}
	slices.Sort(gone)
	for _, key := range gone {
		old := have[key]
		steps = append(steps, fileStep{nil, clientv3.OpDelete(key), noteEndpoint(&old, nil)})
	}
	return steps, s.model.file, s.model.fileRev, nil
}

// putStep is nil when the file's endpoint is as it is to be.
func putStep(key string, old storedEndpoint, e policy.Endpoint) (*fileStep, error) {
	record := endpointRecord{File: true}
	if old.Revision != 0 && old.Addr() == e.Addr() {
		e.Status, e.LastSeen, record.Meshed = old.Status, old.LastSeen, old.Meshed
	}
	if old.File && reflect.DeepEqual(e, old.Endpoint.Endpoint) {
		return nil, nil
	}
	record.Endpoint = e
	op, err := put(key, record)
	return &fileStep{[]clientv3.Cmp{unchanged(key, old.Revision)}, op, noteEndpoint(&old, &e)}, err
}

// noteEndpoint is what the history says of an endpoint that the file adds, changes
// or takes out; now is nil then.
func noteEndpoint(old *storedEndpoint, now *policy.Endpoint) change {
	var before, after *policy.Resource
	named := now
	if old.Revision != 0 {
		before, named = &policy.Resource{Endpoint: &old.Endpoint.Endpoint}, &old.Endpoint.Endpoint
	}
	if now != nil {
		after = &policy.Resource{Endpoint: now}
	}
	ref := policy.Ref{Kind: policy.KindEndpoint, Namespace: named.Namespace, Service: named.ServiceName, ID: named.ID}
	c := change{Difference: policy.Compare(ref, before, after), Leased: old.lease != 0, File: old.File}
	if c.Action == policy.Unchanged && !old.File { // but from now on it is the file's
		c.Action = policy.Changed
	}
	return c
}

// settingsStep puts the file itself in force, with its settings; nil when it is.
func (s *Store) settingsStep(ctx context.Context, f, was *File) (*fileStep, error) {
	base, revision, err := s.baseSettings(ctx)
	if err != nil {
		return nil, err
	}
	after, err := f.over(&base)
	if err != nil {
		return nil, err
	}
	if was != nil && was.Name == f.Name && was.Digest == f.Digest && bytes.Equal(was.Settings, f.Settings) {
		return nil, nil
	}
	before, err := was.over(&base)
	if err != nil {
		before = &base // as model.inForce has it
	}
	op, err := put(s.keys.file(), f)
	note := change{
		Difference: policy.Compare(policy.Ref{Kind: policy.KindConfig}, &policy.Resource{Settings: before}, &policy.Resource{Settings: after}),
		Base:       &base,
	}
	return &fileStep{[]clientv3.Cmp{unchanged(s.keys.settings(), revision)}, op, note}, err
}

// readFile reads a file as stored.
func readFile(value []byte) (*File, error) {
	var f File
	if err := json.Unmarshal(value, &f); err != nil {
		return nil, fmt.Errorf("the mesh file as stored: %w", err)
	}
	return &f, nil
}

// baseSettings are the settings without those of a file.
func (s *Store) baseSettings(ctx context.Context) (policy.Settings, int64, error) {
	value, revision, err := s.get(ctx, s.keys.settings())
	if err != nil {
		return policy.Settings{}, 0, err
	}
	set, err := readSettings(value)
	if err != nil {
		return set, 0, fmt.Errorf("as stored: %w", err)
	}
	return set, revision, nil
}

// ReleaseFile leaves all that a file has put into the state as it is, but nobody's:
// from then on it is changed like anything else. Without a file it does nothing.
func (s *Store) ReleaseFile(ctx context.Context) error {
	return s.write(ctx, "release what a file has set", func(ctx context.Context) error {
		value, revision, err := s.get(ctx, s.keys.file())
		if err != nil || revision == 0 {
			return err
		}
		f, err := readFile(value)
		if err != nil {
			return err
		}
		base, settingsRevision, err := s.baseSettings(ctx)
		if err != nil {
			return err
		}
		merged, err := f.over(&base)
		if err != nil {
			return err
		}
		settings, err := put(s.keys.settings(), merged)
		if err != nil {
			return err
		}
		endpoints, err := s.freed()
		if err != nil {
			return err
		}
		for part := range slices.Chunk(endpoints, s.fileOps()) {
			if err := s.takeSteps(ctx, part); err != nil {
				return s.lookAgain(ctx, err)
			}
		}
		_, err = s.commit(ctx, []clientv3.Cmp{unchanged(s.keys.settings(), settingsRevision), unchanged(s.keys.file(), revision)},
			[]clientv3.Op{settings, clientv3.OpDelete(s.keys.file())})
		return err
	})
}

// freed gives the steps that make the file's endpoints nobody's. The history says
// nothing of them: they are as they were.
func (s *Store) freed() ([]fileStep, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var steps []fileStep
	for name, svc := range s.model.services {
		for id, e := range svc.endpoints {
			if !e.File {
				continue
			}
			key := s.keys.endpoint(name, id)
			op, err := put(key, endpointRecord{Endpoint: e.Endpoint.Endpoint, Meshed: e.Meshed})
			if err != nil {
				return nil, err
			}
			steps = append(steps, fileStep{[]clientv3.Cmp{unchanged(key, e.Revision)}, op, change{Difference: policy.Difference{Action: policy.Unchanged}}})
		}
	}
	return steps, nil
}

// lookAgain reads everything before an attempt that is made because of a race.
func (s *Store) lookAgain(ctx context.Context, err error) error {
	if err != errRace { //nolint:errorlint // never wrapped
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	return errRace
}
